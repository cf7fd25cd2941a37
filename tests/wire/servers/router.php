<?php
// PHP's built-in server. Answers what it saw as JSON, and prints a line for each request it carried out.
$headers = [];
foreach ($_SERVER as $name => $value) {
    if (str_starts_with($name, 'HTTP_')) {
        $headers[strtolower(strtr(substr($name, 5), '_', '-'))][] = $value;
    }
}
$seen = [
    'server' => 'php',
    'method' => $_SERVER['REQUEST_METHOD'],
    'target' => $_SERVER['REQUEST_URI'],
    'headers' => $headers,
    'body' => bin2hex(file_get_contents('php://input')),
    'trailers' => new stdClass(),
];
file_put_contents('php://stderr', json_encode(['method' => $seen['method'], 'target' => $seen['target']], JSON_INVALID_UTF8_SUBSTITUTE) . "\n");
if (strtok($seen['target'], '?') === '/stream') {
    echo 'one,';
    flush();
    echo 'two';
    return;
}
header('Content-Type: application/json');
echo json_encode($seen, JSON_INVALID_UTF8_SUBSTITUTE);
