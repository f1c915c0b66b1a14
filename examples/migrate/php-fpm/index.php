<?php
// The front controller of a shop.
$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
header('Content-Type: text/plain; charset=utf-8');
switch ("{$_SERVER['REQUEST_METHOD']} $path") {
case 'GET /':
case 'HEAD /':
    session_start();
    $visit = $_SESSION['visit'] = ($_SESSION['visit'] ?? 0) + 1;
    echo "visit $visit of ", $_SESSION['name'] ?? 'a stranger', " to http://{$_SERVER['HTTP_HOST']}/\n";
    break;
case 'POST /login':
    session_start();
    $_SESSION['name'] = $_POST['name'];
    header('Location: /', true, 303);
    break;
case 'POST /upload':
    echo $_FILES['f']['name'], ' ', md5_file($_FILES['f']['tmp_name']), "\n";
    break;
case 'GET /search/books':
    echo json_encode([$_GET, $_SERVER['QUERY_STRING'], $_SERVER['SCRIPT_NAME'], $_SERVER['DOCUMENT_ROOT'],
        $_SERVER['SERVER_NAME'], $_SERVER['REMOTE_ADDR'], $_SERVER['HTTP_AUTHORIZATION'] ?? null]), "\n";
    break;
case 'GET /self':
    echo $_SERVER['PHP_SELF'], "\n";
    break;
case 'GET /fault':
    function_that_is_missing();
default:
    http_response_code(404);
    echo "no page\n";
    exit(1);
}
