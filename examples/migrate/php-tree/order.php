<?php
if ($_SERVER['REQUEST_METHOD'] == 'POST') {
    header('Location: /index.php', true, 303);
} else {
    http_response_code(410);
    echo "sold out\n";
}
