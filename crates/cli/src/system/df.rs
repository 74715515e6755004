//! `system df`.

use futures::future::LocalBoxFuture;
use serde::Deserialize;

use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::container::list as containers;
use crate::error::CliResult;
use crate::flags::{Flag, Parsed};
use crate::format::{Format, Printer, Row, short_id, time, units};
use crate::image::list as images;
use crate::output::emit;
use crate::volume;

const FLAGS: &[Flag] = &[
    Flag::text("format", containers::FORMAT_HELP),
    Flag::switch("verbose", "Show every single thing").short('v'),
];

/// `system df`.
pub const DF: Command = Command::new(
    "df",
    "[OPTIONS]",
    "Show how much disk is used",
    Arity::None,
    run_df,
)
.flags(&[FLAGS]);

const TABLE: &str = "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";

const TITLES: &[(&str, &str)] = &[
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

const IMAGES_TABLE: &str = "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t\
                            {{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}";
const CONTAINERS_TABLE: &str = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t\
                                {{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}";
const VOLUMES_TABLE: &str = "table {{.Name}}\t{{.Links}}\t{{.Size}}";

const CACHE_TABLE: &str = "table {{.ID}}\t{{.CacheType}}\t{{.Size}}\t{{.CreatedSince}}\t\
                           {{.LastUsedSince}}\t{{.UsageCount}}\t{{.Shared}}";

const CACHE_TITLES: &[(&str, &str)] = &[
    ("ID", "CACHE ID"),
    ("CacheType", "CACHE TYPE"),
    ("Size", "SIZE"),
    ("CreatedSince", "CREATED"),
    ("LastUsedSince", "LAST USED"),
    ("UsageCount", "USAGE"),
    ("Shared", "SHARED"),
];

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Usage {
    layers_size: i64,
    images: Option<Vec<images::Summary>>,
    containers: Option<Vec<containers::Summary>>,
    volumes: Option<Vec<volume::Volume>>,
    build_cache: Option<Vec<CacheRecord>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CacheRecord {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Type")]
    kind: String,
    size: i64,
    in_use: bool,
    shared: bool,
    created_at: String,
    last_used_at: Option<String>,
    usage_count: i64,
}

impl CacheRecord {
    fn row(&self) -> Row {
        let ago = |text: &str| {
            let time = text.parse::<jiff::Timestamp>().ok();
            time.map(|t| time::ago(t.as_second())).unwrap_or_default()
        };
        let mark = if self.in_use { "*" } else { "" };
        Row::default()
            .text("ID", format!("{}{mark}", short_id(&self.id)))
            .text("CacheType", &self.kind)
            .text("Size", units::size3(units::float(self.size)))
            .text("CreatedSince", ago(&self.created_at))
            .text(
                "LastUsedSince",
                ago(self.last_used_at.as_deref().unwrap_or_default()),
            )
            .text("UsageCount", self.usage_count.to_string())
            .text("Shared", self.shared.to_string())
    }
}

fn line(
    kind: &str,
    count: usize,
    active: usize,
    size: i64,
    reclaimable: i64,
    percent: bool,
) -> Row {
    let human = |n: i64| units::size4(units::float(n));
    let reclaimable = match size {
        total if total > 0 && percent => {
            format!(
                "{} ({}%)",
                human(reclaimable),
                reclaimable.saturating_mul(100) / total
            )
        }
        _ => human(reclaimable),
    };
    Row::default()
        .text("Type", kind)
        .text("TotalCount", count.to_string())
        .text("Active", active.to_string())
        .text("Size", human(size))
        .text("Reclaimable", reclaimable)
}

fn is_active(container: &containers::Summary) -> bool {
    matches!(
        container.state.as_str(),
        "running" | "paused" | "restarting"
    )
}

impl Usage {
    fn rows(&self) -> Vec<Row> {
        let images: Vec<_> = self.images.iter().flatten().collect();
        let used: i64 = images
            .iter()
            .filter(|i| i.containers != 0 && i.size != -1 && i.shared_size != -1)
            .map(|i| i.size - i.shared_size)
            .sum();
        let containers: Vec<_> = self.containers.iter().flatten().collect();
        let written = |c: &&&containers::Summary| c.size_rw;
        let volumes: Vec<_> = self.volumes.iter().flatten().collect();
        let cache: Vec<_> = self.build_cache.iter().flatten().collect();
        let own: i64 = cache.iter().filter(|c| !c.shared).map(|c| c.size).sum();
        let busy: i64 = cache
            .iter()
            .filter(|c| c.in_use && !c.shared)
            .map(|c| c.size)
            .sum();
        let sized = |v: &&&volume::Volume| v.size() > 0;
        vec![
            line(
                "Images",
                images.len(),
                images.iter().filter(|i| i.containers > 0).count(),
                self.layers_size,
                self.layers_size - used,
                true,
            ),
            line(
                "Containers",
                containers.len(),
                containers.iter().filter(|c| is_active(c)).count(),
                containers.iter().map(|c| c.size_rw).sum(),
                containers
                    .iter()
                    .filter(|c| !is_active(c))
                    .map(|c| written(&c))
                    .sum(),
                true,
            ),
            line(
                "Local Volumes",
                volumes.len(),
                volumes.iter().filter(|v| v.links() > 0).count(),
                volumes.iter().filter(sized).map(|v| v.size()).sum(),
                volumes
                    .iter()
                    .filter(sized)
                    .filter(|v| v.links() == 0)
                    .map(|v| v.size())
                    .sum(),
                true,
            ),
            line(
                "Build Cache",
                cache.len(),
                cache.iter().filter(|c| c.in_use).count(),
                own,
                own - busy,
                false,
            ),
        ]
    }
}

fn run_df(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let format = parsed.text("format");
        let usage: Usage = ctx.client().json(Request::get(&["system", "df"])).await?;
        if !parsed.on("verbose") {
            let printer = Printer::new(
                Format::choose(format, TABLE),
                TITLES,
                "*formatter.diskUsageImagesContext",
            )?;
            return printer.print(usage.rows());
        }
        let images = Printer::new(Format::new(IMAGES_TABLE), images::TITLES, images::TYPE_NAME)?
            .render(usage.images.iter().flatten().map(|i| i.first_row(true)))?;
        let containers = Printer::new(
            Format::new(CONTAINERS_TABLE),
            containers::TITLES,
            containers::TYPE_NAME,
        )?
        .render(usage.containers.iter().flatten().map(|c| c.own_size_row()))?;
        let volumes = Printer::new(
            Format::new(VOLUMES_TABLE),
            volume::TITLES,
            volume::TYPE_NAME,
        )?
        .render(usage.volumes.iter().flatten().map(volume::Volume::row))?;
        let own = usage
            .build_cache
            .iter()
            .flatten()
            .filter(|c| !c.shared)
            .map(|c| c.size)
            .sum();
        let own = units::size4(units::float(own));
        let cache = Printer::new(
            Format::new(CACHE_TABLE),
            CACHE_TITLES,
            "*formatter.buildCacheContext",
        )?
        .render(usage.build_cache.iter().flatten().map(CacheRecord::row))?;
        emit(format!(
            "Images space usage:\n\n{images}\nContainers space usage:\n\n{containers}\n\
             Local Volumes space usage:\n\n{volumes}\nBuild cache usage: {own}\n\n{cache}"
        ))
    })
}
