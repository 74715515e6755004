//! `--filter NAME=VALUE`.

use std::collections::BTreeMap;

use serde_json::json;

/// Checks a value; an empty one is no filter.
pub fn check(value: &str) -> Result<String, String> {
    if value.is_empty() || value.contains('=') {
        Ok(value.to_owned())
    } else {
        Err("bad format of filter (expected name=value)".to_owned())
    }
}

/// The filters as the API's query value; none if there are none.
pub fn encode(filters: &[String]) -> Option<String> {
    let mut map: BTreeMap<String, BTreeMap<String, bool>> = BTreeMap::new();
    for (name, value) in filters.iter().filter_map(|f| f.split_once('=')) {
        let name = name.trim().to_lowercase();
        map.entry(name)
            .or_default()
            .insert(value.trim().to_owned(), true);
    }
    (!map.is_empty()).then(|| json!(map).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_a_map_of_sets() {
        let filters = ["label=a=b".to_owned(), "Label=c".to_owned(), String::new()];
        assert_eq!(
            encode(&filters).unwrap(),
            r#"{"label":{"a=b":true,"c":true}}"#
        );
        assert_eq!(encode(&[]), None);
        assert!(check("x").is_err() && check("a=b").is_ok());
    }
}
