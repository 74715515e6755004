//! The end-to-end suite; see the library of this package for how it works.

mod bad_input;
mod build;
mod daemon_restart;
mod exec;
mod failure;
mod files;
mod full_disk;
mod image_kills;
mod images;
mod layers;
mod life;
mod lifecycle;
mod limits;
mod logs;
mod looks;
mod networks;
mod promise;
mod registry;
mod run;
mod shares;
mod streams;
mod terminal;
mod volumes;
