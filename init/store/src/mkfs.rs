//! Makes an empty btrfs filesystem.
