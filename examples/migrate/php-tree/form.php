<?php
header('Content-Type: application/json');
$names = ['REQUEST_METHOD', 'REQUEST_URI', 'QUERY_STRING', 'SCRIPT_NAME', 'PATH_INFO', 'PHP_SELF', 'SCRIPT_FILENAME', 'DOCUMENT_ROOT'];
$size = isset($_FILES['f']) ? filesize($_FILES['f']['tmp_name']) : null;
echo json_encode([$_GET, $_POST, $size, array_map(fn ($name) => $_SERVER[$name] ?? '', $names)], JSON_UNESCAPED_SLASHES);
