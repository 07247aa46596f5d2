//! What is peculiar to SQLite.
