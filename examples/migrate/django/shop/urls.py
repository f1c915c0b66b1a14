from django.http import HttpResponse, HttpResponseRedirect, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt, ensure_csrf_cookie
from django.views.decorators.http import require_POST


def health(request):
    return HttpResponse("ok\n", content_type="text/plain")


@ensure_csrf_cookie
def index(request):
    visits = request.session["visits"] = request.session.get("visits", 0) + 1
    name = request.session.get("name", "a stranger")
    return HttpResponse(f"<p>visit {visits} of {name} to {request.build_absolute_uri('/')}</p>\n")


@require_POST
def login(request):
    request.session["name"] = request.POST["name"]
    return HttpResponseRedirect("/")


@csrf_exempt
def upload(request, name):
    return JsonResponse({"name": name, "bytes": len(request.body)}, status=201)


def fault(request):
    raise RuntimeError("this page always fails")


urlpatterns = [
    path("healthz", health),
    path("", index),
    path("login", login),
    path("files/<name>", upload),
    path("fault", fault),
]
