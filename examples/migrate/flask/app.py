"""A Flask application, the same under gunicorn alone and under patou."""

from flask import Flask, redirect, request, session, url_for

app = Flask(__name__)
app.secret_key = "a key for this example"


@app.get("/healthz")
def health():
    return "ok\n", {"Content-Type": "text/plain; charset=utf-8"}


@app.get("/")
def index():
    session["visits"] = session.get("visits", 0) + 1
    return f"<p>visit {session['visits']} of {session.get('name', 'a stranger')} to {request.host_url}</p>\n"


@app.post("/login")
def login():
    session["name"] = request.form["name"]
    return redirect(url_for("index"))


@app.put("/files/<name>")
def upload(name):
    return {"name": name, "bytes": len(request.get_data())}, 201


@app.get("/fault")
def fault():
    raise RuntimeError("this page always fails")
