//! Sizes as people write them.

/// Parses a size: a whole number with K, M, G or T for the powers of 1024 ("iB" may follow).
///
/// # Errors
/// What is wrong with it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.strip_suffix("iB").unwrap_or(unit) {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "" => return Err("no unit; give a size such as 512M or 4G".to_owned()),
        _ => return Err("no size; give a whole number with K, M, G or T, such as 512M".to_owned()),
    };
    let number = number.parse::<u64>().map_err(|_| "no size; give a number such as 512M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "absurdly large; give a size such as 512M".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_number_and_a_unit() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("4GiB"), Ok(4 << 30));
        assert_eq!(parse_size("0K"), Ok(0));
        for text in ["", "512", "M", "-1M", "1.5G", "5X", "99999999999999T", "18446744073709551616K", "1M "] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
