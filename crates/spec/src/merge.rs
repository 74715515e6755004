//! What a container takes from its image.

use bollard_stubs::models::{ContainerConfig, ImageConfig};

/// Fills in from the image what the user left open, by Docker's rules: an entrypoint of the
/// user drops the image's command, variables and labels of the user win, ports and volumes
/// add up. An entrypoint of one empty string (`--entrypoint ""`) means none.
pub fn merge_image_config(config: &mut ContainerConfig, image: &ImageConfig) {
    if is_blank(config.user.as_deref()) {
        config.user.clone_from(&image.user);
    }
    if is_blank(config.working_dir.as_deref()) {
        config.working_dir.clone_from(&image.working_dir);
    }
    if let Some(directory) = &mut config.working_dir
        && directory.starts_with('/')
    {
        *directory = crate::mount_points::clean_path(directory);
    }
    if is_blank(config.stop_signal.as_deref()) {
        config.stop_signal.clone_from(&image.stop_signal);
    }
    union(&mut config.exposed_ports, image.exposed_ports.as_deref());
    union(&mut config.volumes, image.volumes.as_deref());
    merge_env(&mut config.env, image.env.as_deref().unwrap_or_default());
    if let Some(labels) = &image.labels {
        let own = config.labels.get_or_insert_default();
        for (name, value) in labels {
            own.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    if config.entrypoint.as_deref().unwrap_or_default().is_empty() {
        if config.cmd.as_deref().unwrap_or_default().is_empty() {
            config.cmd.clone_from(&image.cmd);
            config.args_escaped = image.args_escaped;
        }
        if config.entrypoint.is_none() {
            config.entrypoint.clone_from(&image.entrypoint);
        }
    }
    if config.entrypoint.as_deref() == Some(&[String::new()]) {
        config.entrypoint = None;
    }
    merge_healthcheck(config, image);
}

fn merge_healthcheck(config: &mut ContainerConfig, image: &ImageConfig) {
    let Some(image) = &image.healthcheck else {
        return;
    };
    let Some(own) = &mut config.healthcheck else {
        config.healthcheck = Some(image.clone());
        return;
    };
    if own.test.as_deref().unwrap_or_default().is_empty() {
        own.test.clone_from(&image.test);
    }
    let fill = |own: &mut Option<i64>, image: Option<i64>| {
        if own.unwrap_or(0) == 0 {
            *own = image;
        }
    };
    fill(&mut own.interval, image.interval);
    fill(&mut own.timeout, image.timeout);
    fill(&mut own.start_period, image.start_period);
    fill(&mut own.start_interval, image.start_interval);
    fill(&mut own.retries, image.retries);
}

/// The user's variables first, then those of the image that the user did not name.
fn merge_env(own: &mut Option<Vec<String>>, image: &[String]) {
    let name = |variable: &str| {
        variable
            .split_once('=')
            .map_or(variable, |(n, _)| n)
            .to_owned()
    };
    let own = own.get_or_insert_default();
    for variable in image {
        let wanted = name(variable);
        if !own.iter().any(|mine| name(mine) == wanted) {
            own.push(variable.clone());
        }
    }
}

fn union(own: &mut Option<Vec<String>>, image: Option<&[String]>) {
    let Some(image) = image else { return };
    let own = own.get_or_insert_default();
    for item in image {
        if !own.contains(item) {
            own.push(item.clone());
        }
    }
}

fn is_blank(value: Option<&str>) -> bool {
    value.is_none_or(str::is_empty)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bollard_stubs::models::HealthConfig;

    use super::*;

    fn list(items: &[&str]) -> Option<Vec<String>> {
        Some(items.iter().map(|item| (*item).to_owned()).collect())
    }

    fn image() -> ImageConfig {
        ImageConfig {
            cmd: list(&["serve"]),
            entrypoint: list(&["/entry"]),
            env: list(&["PATH=/image", "A=1"]),
            user: Some("app".to_owned()),
            working_dir: Some("/srv".to_owned()),
            labels: Some(HashMap::from([
                ("a".to_owned(), "image".to_owned()),
                ("b".to_owned(), "image".to_owned()),
            ])),
            exposed_ports: list(&["80/tcp"]),
            stop_signal: Some("SIGQUIT".to_owned()),
            healthcheck: Some(HealthConfig {
                test: list(&["CMD", "true"]),
                interval: Some(7),
                ..HealthConfig::default()
            }),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn an_empty_configuration_is_the_images() {
        let mut config = ContainerConfig::default();
        merge_image_config(&mut config, &image());
        assert_eq!(config.cmd, list(&["serve"]));
        assert_eq!(config.entrypoint, list(&["/entry"]));
        assert_eq!(config.user.as_deref(), Some("app"));
        assert_eq!(config.working_dir.as_deref(), Some("/srv"));
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(config.exposed_ports, list(&["80/tcp"]));
    }

    #[test]
    fn a_command_keeps_the_images_entrypoint() {
        let mut config = ContainerConfig {
            cmd: list(&["other"]),
            ..ContainerConfig::default()
        };
        merge_image_config(&mut config, &image());
        assert_eq!(config.entrypoint, list(&["/entry"]));
        assert_eq!(config.cmd, list(&["other"]));
    }

    #[test]
    fn an_entrypoint_drops_the_images_command() {
        let mut config = ContainerConfig {
            entrypoint: list(&["/mine"]),
            ..ContainerConfig::default()
        };
        merge_image_config(&mut config, &image());
        assert_eq!(config.entrypoint, list(&["/mine"]));
        assert_eq!(config.cmd, None);
    }

    #[test]
    fn an_empty_entrypoint_resets_both() {
        let mut config = ContainerConfig {
            entrypoint: list(&[""]),
            cmd: list(&["sh"]),
            ..ContainerConfig::default()
        };
        merge_image_config(&mut config, &image());
        assert_eq!(config.entrypoint, None);
        assert_eq!(config.cmd, list(&["sh"]));
    }

    #[test]
    fn variables_and_labels_of_the_user_win() {
        let mut config = ContainerConfig {
            env: list(&["A=2", "UNSET"]),
            labels: Some(HashMap::from([("a".to_owned(), "mine".to_owned())])),
            ..ContainerConfig::default()
        };
        merge_image_config(&mut config, &image());
        assert_eq!(config.env, list(&["A=2", "UNSET", "PATH=/image"]));
        let labels = config.labels.unwrap();
        assert_eq!(
            (labels["a"].as_str(), labels["b"].as_str()),
            ("mine", "image")
        );
    }

    #[test]
    fn a_healthcheck_is_filled_field_by_field() {
        let mut config = ContainerConfig {
            healthcheck: Some(HealthConfig {
                timeout: Some(3),
                ..HealthConfig::default()
            }),
            ..ContainerConfig::default()
        };
        merge_image_config(&mut config, &image());
        let health = config.healthcheck.unwrap();
        assert_eq!(
            (health.interval, health.timeout, health.test),
            (Some(7), Some(3), list(&["CMD", "true"]))
        );
    }
}
