<?php
// A front controller as those of Laravel and Symfony: the script's name goes, the path is decoded and trimmed.
$path = rawurldecode(parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH) ?: '/');
$path = '/' . trim(preg_replace('#^/index\.php(?=/|$)#', '', $path), '/');
$took = match (true) {
    $_SERVER['REQUEST_METHOD'] !== 'POST' => null,
    $path === '/webhooks/stripe' => 'stripe',
    str_starts_with($path, '/actions/') => 'action',
    default => null,
};
http_response_code($took ? 200 : 404);
echo $took ? "took $took" : 'a page';
