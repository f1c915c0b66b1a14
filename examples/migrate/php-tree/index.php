<?php
// The first page of a shop that is a tree of scripts.
session_start();
$visit = $_SESSION['visit'] = ($_SESSION['visit'] ?? 0) + 1;
echo "visit $visit at ", $_SERVER['SCRIPT_NAME'], "\n";
