//! What is peculiar to Redis.
