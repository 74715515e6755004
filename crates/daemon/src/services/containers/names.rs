//! Names of containers: which are valid, and made-up ones.

use rand::seq::IndexedRandom;

use super::actor::Actor;
use crate::error::{ApiError, ApiResult};

/// Checks a name, with or without its slash, and gives it without.
///
/// # Errors
/// 400 with Docker's words.
pub fn check(name: &str) -> ApiResult<&str> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let mut chars = bare.chars();
    let valid = chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && bare.len() > 1
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if valid {
        Ok(bare)
    } else {
        Err(ApiError::bad_request(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )))
    }
}

impl Actor {
    /// Gives the container another name.
    pub(super) async fn rename(&mut self, name: &str) -> ApiResult<()> {
        let name = check(name)?.to_owned();
        if name == self.record.name {
            return Err(ApiError::bad_request(
                "Renaming a container with the same name as its current name",
            ));
        }
        self.shared.reserve_name(&name, &self.record.id)?;
        let old = std::mem::replace(&mut self.record.name, name.clone());
        if let Err(error) = self.commit().await {
            self.record.name = old;
            self.show(false);
            self.shared.release_name(&name);
            return Err(error);
        }
        self.shared.release_name(&old);
        self.shared.networks.rename(&self.record.id, &name).await?;
        self.shared
            .event(&self.record, "rename", &[("oldName", format!("/{old}"))]);
        Ok(())
    }
}

/// A name that nobody chose. It may be taken.
pub fn random() -> String {
    let mut rng = rand::rng();
    let word = |words: &[&'static str], rng: &mut rand::rngs::ThreadRng| {
        words.choose(rng).copied().unwrap_or("calm")
    };
    format!("{}_{}", word(&QUALITIES, &mut rng), word(&PARTS, &mut rng))
}

const QUALITIES: [&str; 64] = [
    "able", "agile", "alert", "amber", "ample", "apt", "bold", "brave", "bright", "brisk", "calm",
    "candid", "clever", "cosmic", "crisp", "daring", "deft", "dry", "eager", "early", "fair",
    "firm", "fleet", "frank", "fresh", "gentle", "glad", "grand", "hardy", "honest", "humble",
    "jolly", "keen", "kind", "lively", "loyal", "lucid", "mellow", "merry", "mighty", "modest",
    "neat", "nimble", "noble", "patient", "placid", "plucky", "polite", "prompt", "proud", "quick",
    "quiet", "rapid", "ready", "robust", "serene", "sharp", "sleek", "solid", "spry", "steady",
    "sunny", "swift", "tidy",
];

const PARTS: [&str; 64] = [
    "anchor", "ballast", "barge", "beacon", "beam", "berth", "bilge", "boom", "bow", "brig",
    "buoy", "cabin", "capstan", "chart", "cleat", "clipper", "compass", "current", "cutter",
    "davit", "deck", "dinghy", "dock", "ferry", "fender", "frigate", "galley", "gangway",
    "halyard", "harbor", "hatch", "hawser", "helm", "hull", "jetty", "jib", "keel", "ketch",
    "knot", "lantern", "ledger", "lighter", "mast", "mooring", "oar", "pier", "porthole", "prow",
    "quay", "rigging", "rudder", "schooner", "sextant", "skiff", "sloop", "spar", "stern",
    "tender", "tide", "tiller", "transom", "trawler", "winch", "yawl",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_and_invalid() {
        assert_eq!(check("/web.1_a-b").unwrap(), "web.1_a-b");
        for name in ["", "/", "a", "-a", "a b", "a/b", "ä1", "_x"] {
            assert!(check(name).is_err(), "{name}");
        }
        assert!(check(&random()).is_ok());
    }
}
