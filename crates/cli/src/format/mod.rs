//! How answers become text: Go templates, tables, human units, times.

pub mod printer;
pub mod tabs;
pub mod template;
pub mod time;
pub mod units;

pub use printer::{Format, Printer, Row, ellipsis, short_id};
