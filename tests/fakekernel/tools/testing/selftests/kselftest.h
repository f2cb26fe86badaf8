/* ksft_*() */
