//! The supervisor: modules, pool, network and API, each as soon as what it needs is there.
//!
//! It may be started a second time, or a hundredth, on a machine that runs: every step takes what it
//! finds as it is.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use handover::{BootConfig, NodeBundle};
use network::Network;
use store::Store;
use tokio::task::{JoinHandle, spawn_blocking};
use zones::{Cgroups, Zones};

use crate::boot::report;
use crate::console::{self, say};
use crate::modules::Loader;
use crate::{identity, link, pool, preload};

const CGROUPS: &str = "/sys/fs/cgroup";
/// The supervisor's own cgroup, so that the zones' limits say nothing of it.
const OWN_CGROUP: &str = "/sys/fs/cgroup/supervisor";

/// Runs until the machine ends or something fails that a successor may do better.
pub(crate) fn run() -> ExitCode {
    match try_run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("supervisor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_run() -> anyhow::Result<()> {
    let number = std::env::args().nth(2).context("The socket to process 1 is missing")?;
    let keeper = sys::socket::inherited(number.parse().context("The socket to process 1 has no number")?)
        .context("The socket to process 1 is closed")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("Cannot start the runtime")?;
    runtime.block_on(serve(keeper))
}

async fn serve(keeper: OwnedFd) -> anyhow::Result<()> {
    enter_cgroup();
    let config = report("recipe", Instant::now(), identity::boot_config().map(Told)).map(|told| told.0);
    let config = Arc::new(config.unwrap_or_default());
    let loader = Arc::new(Loader::open()?);
    let devices = devices(&loader);
    let cgroups = Cgroups::open(Path::new(CGROUPS), "zones").context("Cannot set up the zones' cgroup")?;
    fs::create_dir_all(zones::STAGING).context("Cannot make the folder for zones' roots")?;
    let (zones, survivors, kept) = Zones::connect(keeper, cgroups).await?;
    if !survivors.is_empty() {
        say!("supervisor: {} processes of zones were kept", survivors.len());
    }
    let _ = (kept, &zones);
    let network = bridge(&loader);
    load_always(&config, &loader);
    let store = open_pool(&config, &loader, devices);

    let bundle = read_bundle(&loader).await;
    let name = report("name", Instant::now(), identity::name_machine(bundle.as_ref()));
    let _ = network.await;
    if let Err(error) = link::start_uplinks(name.as_deref().unwrap_or_default()) {
        say!("network: {error:#}");
    }
    if let Ok(Some(store)) = store.await {
        preload::images(&store, &config.images).await;
    }
    let in_use = console::memory_in_use().unwrap_or_default();
    say!("ready, with {} MB of memory in use", in_use / 1_000_000);
    std::future::pending::<()>().await;
    Ok(())
}

/// What a phase made, when there is nothing to tell of it.
struct Told<T>(T);

impl<T> std::fmt::Display for Told<T> {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}

fn enter_cgroup() {
    let entered = fs::create_dir_all(OWN_CGROUP)
        .and_then(|()| fs::write(Path::new(OWN_CGROUP).join("cgroup.procs"), "0"))
        // The last to go when memory runs out: the zones' processes come first.
        .and_then(|()| fs::write("/proc/self/oom_score_adj", "-900"));
    if let Err(error) = entered {
        say!("supervisor: cannot enter its cgroup: {error}");
    }
}

/// Loads the drivers of the devices present.
fn devices(loader: &Arc<Loader>) -> JoinHandle<()> {
    let loader = loader.clone();
    spawn_blocking(move || {
        let started = Instant::now();
        for failure in loader.load_for_devices() {
            say!("devices: {failure}");
        }
        report("devices", started, anyhow::Ok(format!("{} modules", loader.count())));
    })
}

/// Loads what the recipe wants loaded in any case; nothing waits for it.
fn load_always(config: &Arc<BootConfig>, loader: &Arc<Loader>) {
    let (config, loader) = (config.clone(), loader.clone());
    spawn_blocking(move || {
        for failure in config.load_modules.iter().filter_map(|name| loader.load(name).err()) {
            say!("modules: {failure}");
        }
    });
}

fn open_pool(
    config: &Arc<BootConfig>,
    loader: &Arc<Loader>,
    devices: JoinHandle<()>,
) -> JoinHandle<Option<Arc<Store>>> {
    let (config, loader) = (config.clone(), loader.clone());
    tokio::spawn(async move {
        let started = Instant::now();
        let modules = loader.clone();
        // The file system's modules take as long as the disk's; neither waits for the other.
        let _ = spawn_blocking(move || pool::load_modules(&modules)).await;
        let _ = devices.await;
        let opened = spawn_blocking(move || pool::open(config.pool, &loader)).await;
        let opened = opened.unwrap_or_else(|panic| Err(anyhow::anyhow!("The pool phase panicked: {panic}")));
        report("pool", started, opened.map(Told)).map(|told| Arc::new(told.0))
    })
}

fn bridge(loader: &Arc<Loader>) -> JoinHandle<Option<Arc<Network>>> {
    let loader = loader.clone();
    spawn_blocking(move || {
        let started = Instant::now();
        report("bridge", started, link::open_bridge(&loader).map(Told)).map(|told| Arc::new(told.0))
    })
}

async fn read_bundle(loader: &Arc<Loader>) -> Option<NodeBundle> {
    let loader = loader.clone();
    let started = Instant::now();
    let read = spawn_blocking(move || identity::node_bundle(&loader)).await;
    let read = read.unwrap_or_else(|panic| Err(anyhow::anyhow!("The identity phase panicked: {panic}")));
    report("identity", started, read.map(Told)).and_then(|told| told.0)
}
