//! What of a container's file system is hidden or read-only.

/// The paths that a client gives go in place of the usual ones, also where it gives none.
pub(super) fn paths(asked_for: Option<&[String]>, usual: &[&str]) -> Vec<String> {
    let usual = || usual.iter().map(|path| (*path).to_owned()).collect();
    asked_for.map_or_else(usual, <[String]>::to_vec)
}
