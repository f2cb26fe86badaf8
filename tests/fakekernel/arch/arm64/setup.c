/* Sets up arm64. */
