//! The filters of `docker images` and `docker image prune`.

use std::collections::{HashMap, HashSet};

use bulkhead_image::{ImageId, ImageSummary, Reference};
use jiff::Timestamp;

use crate::error::{ApiError, ApiResult};
use crate::state::AppState;

/// What a filter may be called.
pub(super) const KNOWN: [&str; 6] = ["dangling", "label", "reference", "before", "since", "until"];

/// Decoded filters.
type Filters = HashMap<String, Vec<String>>;

/// The images that pass. Without `all`, steps of other images that have no name are left out.
///
/// # Errors
/// 400 for a bad value, 404 for an image that `before` or `since` names.
pub(super) async fn select<'a>(
    state: &AppState,
    images: &'a [ImageSummary],
    filters: &Filters,
    all: bool,
) -> ApiResult<Vec<&'a ImageSummary>> {
    let before = reference_time(state, images, filters, "before").await?;
    let since = reference_time(state, images, filters, "since").await?;
    let dangling = dangling(filters)?;
    let until = until_filter(filters, "until")?;
    let parents: HashSet<&ImageId> = images.iter().filter_map(|i| i.parent.as_ref()).collect();
    let mut out = Vec::new();
    for image in images {
        let named = !image.tags.is_empty() || !image.digests.is_empty();
        let is_step = !named && parents.contains(&image.id);
        let passes = (all || !is_step)
            && match dangling {
                Some(true) => image.tags.is_empty() && !is_step,
                Some(false) => named,
                None => true,
            }
            && before.is_none_or(|time| image.created_nanoseconds < time)
            && since.is_none_or(|time| image.created_nanoseconds > time)
            && matches_labels(image, filters)
            && until.is_none_or(|until| image.created < until)
            && matches_reference(image, filters);
        if passes {
            out.push(image);
        }
    }
    Ok(out)
}

/// When the image that a filter names was made.
async fn reference_time(
    state: &AppState,
    images: &[ImageSummary],
    filters: &Filters,
    key: &str,
) -> ApiResult<Option<i128>> {
    let Some(name) = filters.get(key).and_then(|values| values.first()) else {
        return Ok(None);
    };
    let id = state.images.resolve(name).await?;
    Ok(images
        .iter()
        .find(|image| image.id == id)
        .map(|image| image.created_nanoseconds))
}

/// What `dangling` asks for.
///
/// # Errors
/// 400 for what is neither true nor false.
pub(super) fn dangling(filters: &Filters) -> ApiResult<Option<bool>> {
    let Some(value) = filters.get("dangling").and_then(|values| values.first()) else {
        return Ok(None);
    };
    match value.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Ok(Some(true)),
        "0" | "f" | "false" => Ok(Some(false)),
        _ => Err(ApiError::bad_request(format!(
            "invalid filter 'dangling=[{value}]'"
        ))),
    }
}

/// Whether an image has every label of `label` and none of `label!`.
pub(super) fn matches_labels(image: &ImageSummary, filters: &Filters) -> bool {
    let has = |wanted: &String| {
        let labels = image.config.labels.as_ref();
        match wanted.split_once('=') {
            Some((name, value)) => {
                labels
                    .and_then(|labels| labels.get(name))
                    .map(String::as_str)
                    == Some(value)
            }
            None => labels.is_some_and(|labels| labels.contains_key(wanted)),
        }
    };
    let values = |key: &str| filters.get(key).map(Vec::as_slice).unwrap_or_default();
    values("label").iter().all(has) && !values("label!").iter().any(has)
}

/// The time that a filter gives, seconds since the epoch.
///
/// # Errors
/// 400 for what is no time, and for several.
pub(crate) fn until_filter(filters: &Filters, key: &str) -> ApiResult<Option<i64>> {
    let value = match filters.get(key).map(Vec::as_slice) {
        None | Some([]) => return Ok(None),
        Some([value]) => value,
        Some(_) => {
            return Err(ApiError::bad_request(format!(
                "more than one {key} filter specified"
            )));
        }
    };
    let until = until_time(value, Timestamp::now());
    until.map(Some).ok_or_else(|| {
        ApiError::bad_request(format!(
            "invalid value '{value}' for filter '{key}': use a time such as \
             2026-01-31T10:00:00Z, seconds since the epoch, or an age such as 24h"
        ))
    })
}

/// Seconds since the epoch of a time, a date, a number of seconds or an age (`1h30m`).
fn until_time(text: &str, now: Timestamp) -> Option<i64> {
    let whole = text.split('.').next().unwrap_or(text);
    if let Ok(seconds) = whole.parse::<i64>() {
        return Some(seconds);
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time.as_second());
    }
    let zone = jiff::tz::TimeZone::system();
    if let Ok(local) = text.parse::<jiff::civil::DateTime>() {
        return Some(local.to_zoned(zone).ok()?.timestamp().as_second());
    }
    let age: jiff::SignedDuration = text.parse().ok()?;
    now.checked_sub(age).ok().map(|time| time.as_second())
}

fn matches_reference(image: &ImageSummary, filters: &Filters) -> bool {
    let mut all = image.tags.iter().chain(&image.digests);
    filters.get("reference").is_none_or(Vec::is_empty)
        || all.any(|reference| is_shown(reference, filters))
}

/// Whether a name of an image is listed: those that no pattern of `reference` means are not.
pub(super) fn is_shown(reference: &Reference, filters: &Filters) -> bool {
    let patterns = filters
        .get("reference")
        .map(Vec::as_slice)
        .unwrap_or_default();
    let names = names_of(reference);
    let meant = |pattern: &String| names.iter().any(|name| glob(pattern, name));
    patterns.is_empty() || patterns.iter().any(meant)
}

/// A reference as a pattern may mean it: with and without its tag or digest.
fn names_of(reference: &Reference) -> [String; 4] {
    let (short, name) = (reference.familiar(), reference.familiar_name());
    // The whole name, with what the short one leaves out.
    let whole = reference.name();
    let rest = short.strip_prefix(&name).unwrap_or_default();
    [short.clone(), name.clone(), format!("{whole}{rest}"), whole]
}

/// Shell patterns as Go's `path.Match` reads them: `*` and `?` stop at a slash.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    // `star` is where to come back to: the pattern behind the last `*` and the text it took.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some('?') => (text[t] != '/').then_some(1),
            Some('[') => class(&pattern[p..], text[t]),
            Some('\\') => pattern.get(p + 1).filter(|c| **c == text[t]).map(|_| 2),
            Some(c) => (*c == text[t]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(width), _) => {
                p += width;
                t += 1;
            }
            (None, Some((back, taken))) if text[taken] != '/' => {
                star = Some((back, taken + 1));
                p = back;
                t = taken + 1;
            }
            (None, _) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Matches one character against `[a-z]` or `[^a-z]`; gives the width of the class.
fn class(pattern: &[char], c: char) -> Option<usize> {
    let negated = pattern.get(1) == Some(&'^');
    let mut at = if negated { 2 } else { 1 };
    let mut inside = false;
    let first = at;
    loop {
        let low = *pattern.get(at)?;
        if low == ']' && at > first {
            break;
        }
        if pattern.get(at + 1) == Some(&'-') && pattern.get(at + 2).is_some_and(|h| *h != ']') {
            inside |= (low..=pattern[at + 2]).contains(&c);
            at += 3;
        } else {
            inside |= low == c;
            at += 1;
        }
    }
    (inside != negated).then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_as_go_reads_them() {
        for (pattern, text) in [
            ("busybox", "busybox"),
            ("busy*", "busybox"),
            ("*:latest", "busybox:latest"),
            ("b?sybox", "busybox"),
            ("[a-c]usybox", "busybox"),
            ("[^x]*", "busybox"),
            ("*/*", "library/app"),
            ("a*b*c", "axxbxxbc"),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("busy", "busybox"),
            ("*", "library/app"),
            ("?", "/"),
            ("[a", "a"),
            ("[^b]usybox", "busybox"),
            ("a*b", "axxbc"),
        ] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_reference_is_meant_with_and_without_its_tag() {
        let reference = Reference::parse("localhost:5000/a:1").unwrap();
        assert_eq!(
            names_of(&reference),
            [
                "localhost:5000/a:1",
                "localhost:5000/a",
                "localhost:5000/a:1",
                "localhost:5000/a"
            ]
        );
        let names = names_of(&Reference::parse("a:1").unwrap());
        assert_eq!(names[2..], ["docker.io/library/a:1", "docker.io/library/a"]);
    }

    #[test]
    fn times_and_ages() {
        let now = Timestamp::from_second(10_000).unwrap();
        assert_eq!(until_time("5000", now), Some(5000));
        assert_eq!(until_time("5000.25", now), Some(5000));
        assert_eq!(until_time("1h", now), Some(6400));
        assert_eq!(until_time("1970-01-01T00:01:00Z", now), Some(60));
        assert_eq!(until_time("soon", now), None);
    }
}
