//! Converts one layer tar to an EROFS image and prints what it made: for benchmarks and for
//! looking at images with `dump.erofs`.
//!
//! `convert_layer <tar> <image>`

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(tar), Some(image), None) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return fail("usage: convert_layer <tar> <image>");
    };
    let mut source = match File::open(&tar) {
        Ok(source) => source,
        Err(error) => return fail(format!("{}: {error}", tar.display())),
    };
    let output = match File::create(&image) {
        Ok(output) => output,
        Err(error) => return fail(format!("{}: {error}", image.display())),
    };
    match bulkhead_image::convert_layer(&mut source, &output) {
        Ok(layer) => {
            let line = format!(
                "{} tar={} image={} content={} inodes={}\n",
                layer.diff_id,
                layer.tar_bytes,
                layer.image_bytes,
                layer.content_bytes,
                layer.inodes
            );
            // A closed pipe is no failure of the conversion.
            let _ = std::io::stdout().write_all(line.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => fail(error.full_message()),
    }
}

fn fail(why: impl std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "convert_layer: {why}");
    ExitCode::FAILURE
}
