<?php
session_save_path(getenv('HOME'));
session_set_cookie_params(['secure' => ($_SERVER['HTTP_X_FORWARDED_PROTO'] ?? '') === 'https', 'httponly' => true]);
session_start();
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    if (isset($_FILES['file'])) {
        echo hash_file('sha256', $_FILES['file']['tmp_name']);
        exit;
    }
    $_SESSION['said'][] = $_POST['word'];
    header('Location: /', true, 303);
    exit;
}
echo implode(',', $_SESSION['said'] ?? []);
