/* Sets up x86. */
