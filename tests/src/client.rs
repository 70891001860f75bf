//! The clients of the Docker API: Debian's docker command, unmodified, and bollard.
