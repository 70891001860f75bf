//! Progress in the words of Docker's streams.

use serde_json::{Value, json};
use store::Digest;

use super::short;

/// How far the work on one layer is.
pub(super) fn line(status: &str, layer: &Digest, done: u64, total: u64) -> Value {
    json!({
        "status": status,
        "progressDetail": { "current": done, "total": total },
        "progress": bar(done, total),
        "id": short(&layer.hex()),
    })
}

/// The bar that Docker's engine draws for clients that do not draw their own.
fn bar(done: u64, total: u64) -> String {
    const WIDTH: u64 = 50;
    let megabytes = |bytes: u64| format!("{:.3}MB", bytes as f64 / 1e6);
    let Some(filled) = (done.min(total) * WIDTH).checked_div(total) else {
        return megabytes(done);
    };
    let full = "=".repeat(usize::try_from(filled).unwrap_or(0));
    let rest = " ".repeat(usize::try_from(WIDTH - filled).unwrap_or(0));
    format!("[{full}>{rest}]  {}/{}", megabytes(done), megabytes(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_holds_at_both_ends() {
        assert!(bar(0, 100).starts_with("[>"));
        assert!(bar(100, 100).contains(&"=".repeat(50)));
        assert_eq!(bar(5_000_000, 0), "5.000MB");
    }
}
