//! Copies a file to or from a guest and says how fast: `copy TARGET up|down FROM TO`.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use qga_client::{Agent, CopyOptions, Timeouts};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, way, from, to] = arguments.as_slice() else {
        return Err("write: copy TARGET up|down FROM TO".into());
    };
    let mut agent = Agent::connect(&target.parse()?, Timeouts::default())?;
    let options = CopyOptions { resume: true, ..CopyOptions::default() };
    let started = Instant::now();
    let mut go_on = |_: qga_client::Progress<'_>| ControlFlow::Continue(());
    let copied = match way.as_str() {
        "up" => agent.upload(Path::new(from), to, options, &mut go_on)?,
        "down" => agent.download(from, Path::new(to), options, &mut go_on)?,
        _ => return Err(format!("{way:?} is neither up nor down").into()),
    };
    let seconds = started.elapsed().as_secs_f64();
    let megabytes = (copied.bytes - copied.resumed_at) as f64 / 1e6;
    println!("{megabytes:.1} MB in {seconds:.2} s: {:.0} MB/s", megabytes / seconds);
    Ok(())
}
