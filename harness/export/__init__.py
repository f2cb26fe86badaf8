"""The series as mails."""
