//! Amounts of bytes as people write them.

/// Bytes of `10k`, `1.5m`, `2GB`, `1GiB`; `kilo` says what a k is: options are read with 1000 or with
/// 1024, whichever way the unit is written. None where it is no amount.
pub(crate) fn bytes(text: &str, kilo: u32) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let power = match unit.trim_start_matches(' ').to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return None,
    };
    Some((number * f64::from(kilo).powi(power)) as u64)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn amounts_are_read_as_docker_reads_them() {
        assert_eq!(bytes("10k", 1000), Some(10_000));
        assert_eq!(bytes("1.5MB", 1024), Some(3 << 19));
        assert_eq!(bytes("2 GiB", 1024), Some(2 << 30));
        assert_eq!(bytes("7", 1024), Some(7));
        for wrong in ["", "m", "-1", "1x", "1 2"] {
            assert_eq!(bytes(wrong, 1024), None, "{wrong}");
        }
    }
}
