//! The `info` command.

use futures::future::LocalBoxFuture;
use serde_json::{Value as Json, json};

use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};
use crate::format::template::{MissingKey, Template, Value};
use crate::format::units;
use crate::output::{complain, emit};

const FLAGS: &[Flag] = &[Flag::text("format", super::inspect::FORMAT_HELP).short('f')];

/// The `info` command.
pub const INFO: Command = Command::new(
    "info",
    "[OPTIONS]",
    "Show the state of the engine and of its host",
    Arity::None,
    run_info,
)
.flags(&[FLAGS])
.common()
.spelled(&["bulkhead system info", "bulkhead info"]);

fn client(ctx: &Ctx) -> Json {
    json!({
        "Debug": ctx.debug(),
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": super::version::API_VERSION,
        "DefaultAPIVersion": super::version::API_VERSION,
        "Os": std::env::consts::OS,
        "Context": "default",
        "Plugins": [],
        "Warnings": null,
    })
}

/// Writes the lines of the engine's part.
struct Report<'a> {
    info: &'a Json,
    out: String,
}

impl Report<'_> {
    fn text(&self, pointer: &str) -> &str {
        self.info
            .pointer(pointer)
            .and_then(Json::as_str)
            .unwrap_or_default()
    }

    fn number(&self, key: &str) -> i64 {
        self.info
            .get(key)
            .and_then(Json::as_i64)
            .unwrap_or_default()
    }

    fn truth(&self, key: &str) -> bool {
        self.info
            .get(key)
            .and_then(Json::as_bool)
            .unwrap_or_default()
    }

    fn list(&self, pointer: &str) -> Vec<&Json> {
        self.info
            .pointer(pointer)
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .collect()
    }

    fn words(&self, pointer: &str) -> String {
        let words: Vec<&str> = self
            .list(pointer)
            .iter()
            .filter_map(|w| w.as_str())
            .collect();
        words.join(" ")
    }

    fn line(&mut self, label: &str, value: impl std::fmt::Display) {
        self.out.push_str(&format!("{label} {value}\n"));
    }

    fn line_if(&mut self, label: &str, pointer: &str) {
        let value = self.text(pointer).to_owned();
        if !value.is_empty() {
            self.line(label, value);
        }
    }

    fn pairs(&mut self, key: &str, indent: &str) {
        let pairs: Vec<(String, String)> = self
            .list(key)
            .iter()
            .filter_map(|p| {
                Some((
                    p.get(0)?.as_str()?.to_owned(),
                    p.get(1)?.as_str()?.to_owned(),
                ))
            })
            .collect();
        for (name, value) in pairs {
            self.out.push_str(&format!("{indent}{name}: {value}\n"));
        }
    }

    fn security(&mut self) {
        let options: Vec<String> = self
            .list("/SecurityOptions")
            .iter()
            .filter_map(|o| o.as_str().map(str::to_owned))
            .collect();
        if options.is_empty() {
            return;
        }
        self.out.push_str(" Security Options:\n");
        for option in options {
            let fields: Vec<(&str, &str)> = option
                .split(',')
                .filter_map(|f| f.split_once('='))
                .collect();
            match fields.iter().find(|(key, _)| *key == "name") {
                Some((_, name)) => self.out.push_str(&format!("  {name}\n")),
                None => self.out.push_str(&format!("  {option}\n")),
            }
            for (_, profile) in fields.iter().filter(|(key, _)| *key == "profile") {
                self.out.push_str(&format!("   Profile: {profile}\n"));
            }
        }
    }

    fn registries(&mut self) {
        let indexes = self
            .info
            .pointer("/RegistryConfig/IndexConfigs")
            .and_then(Json::as_object)
            .cloned()
            .unwrap_or_default();
        let ranges = self.list("/RegistryConfig/InsecureRegistryCIDRs");
        let ranges: Vec<String> = ranges
            .iter()
            .filter_map(|r| r.as_str().map(str::to_owned))
            .collect();
        if !indexes.is_empty() || !ranges.is_empty() {
            self.out.push_str(" Insecure Registries:\n");
            for index in indexes.values() {
                if index.get("Secure").and_then(Json::as_bool) == Some(false) {
                    let name = index.get("Name").and_then(Json::as_str).unwrap_or_default();
                    self.out.push_str(&format!("  {name}\n"));
                }
            }
            for range in ranges {
                self.out.push_str(&format!("  {range}\n"));
            }
        }
        let mirrors: Vec<String> = self
            .list("/RegistryConfig/Mirrors")
            .iter()
            .filter_map(|m| m.as_str().map(str::to_owned))
            .collect();
        if !mirrors.is_empty() {
            self.out
                .push_str(&format!(" Registry Mirrors:\n  {}\n", mirrors.join("\n  ")));
        }
    }

    fn write(mut self, debug: bool) -> String {
        self.line(" Containers:", self.number("Containers"));
        self.line("  Running:", self.number("ContainersRunning"));
        self.line("  Paused:", self.number("ContainersPaused"));
        self.line("  Stopped:", self.number("ContainersStopped"));
        self.line(" Images:", self.number("Images"));
        self.line_if(" Server Version:", "/ServerVersion");
        self.line_if(" Storage Driver:", "/Driver");
        self.pairs("/DriverStatus", "  ");
        self.pairs("/SystemStatus", " ");
        self.line_if(" Logging Driver:", "/LoggingDriver");
        self.line_if(" Cgroup Driver:", "/CgroupDriver");
        self.line_if(" Cgroup Version:", "/CgroupVersion");
        self.out.push_str(" Plugins:\n");
        self.line("  Volume:", self.words("/Plugins/Volume"));
        self.line("  Network:", self.words("/Plugins/Network"));
        if !self.list("/Plugins/Authorization").is_empty() {
            self.line("  Authorization:", self.words("/Plugins/Authorization"));
        }
        self.line("  Log:", self.words("/Plugins/Log"));
        let directories: Vec<String> = self
            .list("/CDISpecDirs")
            .iter()
            .filter_map(|d| d.as_str().map(str::to_owned))
            .collect();
        if !directories.is_empty() {
            self.out.push_str(&format!(
                " CDI spec directories:\n  {}\n",
                directories.join("\n  ")
            ));
        }
        self.line(" Swarm:", self.text("/Swarm/LocalNodeState").to_owned());
        let runtimes = self.info.get("Runtimes").and_then(Json::as_object);
        if let Some(runtimes) = runtimes.filter(|r| !r.is_empty()) {
            let names: Vec<&str> = runtimes.keys().map(String::as_str).collect();
            self.line(" Runtimes:", names.join(" "));
            self.line(" Default Runtime:", self.text("/DefaultRuntime").to_owned());
        }
        self.line(" Init Binary:", self.text("/InitBinary").to_owned());
        self.line(
            " containerd version:",
            self.text("/ContainerdCommit/ID").to_owned(),
        );
        self.line(" runc version:", self.text("/RuncCommit/ID").to_owned());
        self.line(" init version:", self.text("/InitCommit/ID").to_owned());
        self.security();
        self.line_if(" Kernel Version:", "/KernelVersion");
        self.line_if(" Operating System:", "/OperatingSystem");
        self.line_if(" OSType:", "/OSType");
        self.line_if(" Architecture:", "/Architecture");
        self.line(" CPUs:", self.number("NCPU"));
        self.line(
            " Total Memory:",
            units::binary_size(units::float(self.number("MemTotal"))),
        );
        self.line_if(" Name:", "/Name");
        self.line_if(" ID:", "/ID");
        self.line(" Docker Root Dir:", self.text("/DockerRootDir").to_owned());
        self.line(" Debug Mode:", self.truth("Debug"));
        if self.truth("Debug") || debug {
            self.line("  File Descriptors:", self.number("NFd"));
            self.line("  Goroutines:", self.number("NGoroutines"));
            self.line("  System Time:", self.text("/SystemTime").to_owned());
            self.line("  EventsListeners:", self.number("NEventsListener"));
        }
        self.line_if(" HTTP Proxy:", "/HttpProxy");
        self.line_if(" HTTPS Proxy:", "/HttpsProxy");
        self.line_if(" No Proxy:", "/NoProxy");
        let labels: Vec<String> = self
            .list("/Labels")
            .iter()
            .filter_map(|l| l.as_str().map(str::to_owned))
            .collect();
        if !labels.is_empty() {
            self.out
                .push_str(&format!(" Labels:\n  {}\n", labels.join("\n  ")));
        }
        self.line(" Experimental:", self.truth("ExperimentalBuild"));
        self.registries();
        self.line(" Live Restore Enabled:", self.truth("LiveRestoreEnabled"));
        self.line_if(" Product License:", "/ProductLicense");
        let pools = self.list("/DefaultAddressPools");
        let pools: Vec<String> = pools
            .iter()
            .map(|p| {
                let base = p.get("Base").and_then(Json::as_str).unwrap_or_default();
                let size = p.get("Size").and_then(Json::as_i64).unwrap_or_default();
                format!("   Base: {base}, Size: {size}\n")
            })
            .collect();
        if !pools.is_empty() {
            self.out
                .push_str(&format!(" Default Address Pools:\n{}", pools.concat()));
        }
        self.out.push('\n');
        self.out
    }
}

fn run_info(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let format = parsed.text("format");
        if !format.is_empty() {
            let source = if format == "json" {
                "{{json .}}"
            } else {
                format
            };
            let template = Template::parse(source).map_err(|error| CliError::Status {
                message: format!("template parsing error: {error}"),
                code: 64,
            })?;
            let mut info: Json = ctx.client().json(Request::get(&["info"])).await?;
            if let Some(object) = info.as_object_mut() {
                object.insert("ClientInfo".to_owned(), client(&ctx));
            }
            return match template.render(&Value::from_api(&info), MissingKey::NoValue) {
                Ok(text) => emit(text + "\n"),
                Err(error) => {
                    emit("\n")?;
                    Err(CliError::msg(error.to_string()))
                }
            };
        }
        emit(format!(
            "Client:\n Version:    {}\n Context:    default\n Debug Mode: {}\n\nServer:\n",
            env!("CARGO_PKG_VERSION"),
            ctx.debug()
        ))?;
        let info: Json = match ctx.client().json(Request::get(&["info"])).await {
            Ok(info) => info,
            Err(error) if error.is_unreachable() => return Err(error.into()),
            Err(error) => {
                complain(format!("ERROR: {error}"));
                return Err(CliError::msg("errors pretty printing info"));
            }
        };
        emit(
            Report {
                info: &info,
                out: String::new(),
            }
            .write(ctx.debug()),
        )?;
        let warnings = info.get("Warnings").and_then(Json::as_array);
        for warning in warnings.into_iter().flatten().filter_map(Json::as_str) {
            complain(warning);
        }
        Ok(())
    })
}
