//! The supervisor: modules, pool, network and API, each as soon as what it needs is there.
//!
//! It may be started a second time, or a hundredth, on a machine that runs: every step takes what it
//! finds as it is.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use docker::{Engine, EngineConfig, Power};
use handover::{API_PORT, BootConfig, NodeBundle};
use network::Networks;
use rustix::process::Signal;
use store::Store;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use zones::{Cgroups, Most, Zones};

use crate::boot::report;
use crate::console::{self, say};
use crate::keys::Keyring;
use crate::modules::Loader;
use crate::{identity, link, pool, preload};

/// This file, as process 1 sees it: it is also the init of zones.
const INIT: &str = "/init";
const CGROUPS: &str = "/sys/fs/cgroup";
/// Name under which process 1 keeps the API's listening socket.
const LISTENER: &str = "api";
const LOCKED: &str = "The pool is locked: type its passphrase at the console, or run `monobloc pool unlock`.";
/// How long zones may take to stop when the machine ends.
const STOP_LIMIT: Duration = Duration::from_secs(10);
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
    let number = std::env::args()
        .nth(2)
        .context("The socket to process 1 is missing")?;
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
    let mut cgroups =
        Cgroups::open(Path::new(CGROUPS), "zones").context("Cannot set up the zones' cgroup")?;
    if let Err(error) = cgroups.bound(machine()) {
        say!("supervisor: the zones are not bounded: {error}");
    }
    prefer_own_cgroup();
    fs::create_dir_all(zones::STAGING).context("Cannot make the folder for zones' roots")?;
    let (zones, survivors, mut kept) = Zones::connect(keeper, cgroups).await?;
    if !survivors.is_empty() {
        say!("supervisor: {} processes of zones were kept", survivors.len());
    }
    let (power, mut asked) = mpsc::unbounded_channel();
    let listening = kept.remove(LISTENER);
    let keys = Arc::new(Keyring::new(loader.clone()));
    let engine = Engine::new(
        zones.clone(),
        survivors,
        kept,
        engine_config(&config, &keys, power),
    );
    let boot = !engine.is_successor();
    // A predecessor has loaded them: the pool and the zones need not wait.
    let early = boot.then(|| devices(&loader));
    let bundle = read_bundle(&loader).await;
    if let Some(key) = bundle.as_ref().and_then(|bundle| bundle.pool_key.as_ref()) {
        keys.set_bundle(key);
    }
    let name = report("name", Instant::now(), identity::name_machine(bundle.as_ref())).unwrap_or_default();
    let served = match &bundle {
        Some(bundle) => api(bundle, listening, &zones, &engine).await,
        None => Err(anyhow::anyhow!(
            "There is no node bundle, so nobody can be let in: boot the machine with one"
        )),
    };
    report("api", Instant::now(), served);
    if let Err(error) = link::start_uplinks(&loader, &name) {
        say!("network: {error:#}");
    }
    // What a client needs to be answered comes first: the many modules of the bridge and the pool
    // would only take the processors away from it.
    if let Some(devices) = early {
        let _ = devices.await;
    }
    let network = bridge(&loader);
    let locked = Arc::downgrade(&engine);
    keys.set_on_wait(Box::new(move || {
        if let Some(engine) = locked.upgrade() {
            engine.no_store(LOCKED);
        }
    }));
    let store = open_pool(&config, &keys, &loader);
    load_always(&config, &loader);
    let coming = tokio::spawn(bring_up(engine.clone(), config, network, store));
    if !boot {
        tokio::spawn(async move {
            let _ = coming.await;
            // For those that came in between.
            let _ = devices(&loader).await;
        });
    }

    let end = tokio::select! {
        end = asked.recv() => end.unwrap_or(Power::Off),
        restart = zones.keeper().end_asked() => match restart {
            Some(true) => Power::Reboot,
            Some(false) => Power::Off,
            None => anyhow::bail!("Process 1 has closed its socket"),
        },
    };
    say!("stopping the zones");
    engine.stop_all_zones(STOP_LIMIT).await;
    zones.keeper().power(end == Power::Reboot).await?;
    // Process 1 ends this process with all others.
    std::future::pending().await
}

fn engine_config(
    config: &Arc<BootConfig>,
    keys: &Arc<Keyring>,
    power: mpsc::UnboundedSender<Power>,
) -> EngineConfig {
    let desk = keys.clone();
    EngineConfig {
        name: config.name.clone(),
        version: crate::version(),
        build: std::env::args().nth(3).filter(|build| !build.is_empty()),
        fell_back: std::env::args().nth(4).filter(|reason| !reason.is_empty()),
        registry: config.registry.clone(),
        allow_host_privilege: config.allow_host_privilege,
        zone_init: Some(INIT.to_owned()),
        power: Box::new(move |end| {
            if end == Power::Supervisor {
                let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
                std::process::abort();
            }
            let _ = power.send(end);
        }),
        keys: keys.clone(),
        unlock: Box::new(move |secret| desk.unlock(secret)),
        pool_kind: Box::new(pool::kind),
    }
}

/// Serves the API. The listening socket outlives the supervisor: connections that come while there is
/// none wait for its successor.
async fn api(
    bundle: &NodeBundle,
    listening: Option<OwnedFd>,
    zones: &Zones,
    engine: &Arc<Engine>,
) -> anyhow::Result<String> {
    let tls = docker::tls::server_config(bundle).context("The node bundle's identity is damaged")?;
    let listener = match listening {
        Some(fd) => std::net::TcpListener::from(fd),
        None => {
            let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, API_PORT))
                .with_context(|| format!("Cannot listen on port {API_PORT}"))?;
            zones.keeper().keep(LISTENER, listener.as_fd()).await?;
            listener
        }
    };
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(docker::serve(listener, tls, engine.clone()));
    Ok(format!("listening on port {API_PORT}"))
}

/// Gives the engine network and store when they are there, then what the recipe starts.
async fn bring_up(
    engine: Arc<Engine>,
    config: Arc<BootConfig>,
    network: JoinHandle<Option<Arc<Networks>>>,
    store: JoinHandle<Option<Arc<Store>>>,
) {
    match network.await {
        Ok(Some(network)) => engine.set_network(network),
        _ => engine.no_network("The zones' network could not be set up; the console says why."),
    }
    match store.await {
        Ok(Some(store)) => {
            engine.set_store(store.clone());
            tell_serving(&engine).await;
            if !engine.is_successor() {
                start_what_boots(&engine, &store, &config).await;
            }
        }
        _ => {
            engine.no_store("The pool could not be opened; the console says why.");
            tell_serving(&engine).await;
        }
    }
    let in_use = console::memory_in_use().unwrap_or_default();
    say!("ready, with {} MB of memory in use", in_use / 1_000_000);
}

/// Process 1 is told that clients are answered.
async fn tell_serving(engine: &Engine) {
    if let Err(error) = engine.serves().await {
        say!("supervisor: {error:#}");
    }
}

/// The images and zones of the recipe, once after each boot.
async fn start_what_boots(engine: &Arc<Engine>, store: &Arc<Store>, config: &BootConfig) {
    preload::images(store, &config.images).await;
    if !config.zones.is_empty() {
        let started = Instant::now();
        engine.start_boot_zones(&config.zones).await;
        let names: Vec<&str> = config.zones.iter().map(|zone| zone.name.as_str()).collect();
        report("zones", started, anyhow::Ok(names.join(", ")));
    }
    if let Err(error) = engine.brought_up().await {
        say!("supervisor: {error}");
    }
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

/// What there is to be divided among zones.
fn machine() -> Most {
    let info = rustix::system::sysinfo();
    let threads = fs::read_to_string("/proc/sys/kernel/threads-max").ok();
    Most {
        memory: Some(info.totalram.saturating_mul(u64::from(info.mem_unit))),
        pids: threads.and_then(|text| text.trim().parse().ok()),
    }
}

/// However busy the zones are, clients are answered: the supervisor's memory is not taken for theirs,
/// and it has the processors before them.
fn prefer_own_cgroup() {
    for (file, value) in [("memory.min", "67108864"), ("cpu.weight", "200")] {
        if let Err(error) = fs::write(Path::new(OWN_CGROUP).join(file), value) {
            say!("supervisor: cannot set its {file}: {error}");
        }
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
        report(
            "devices",
            started,
            anyhow::Ok(format!("{} modules", loader.count())),
        );
    })
}

/// Loads what the recipe wants loaded in any case; nothing waits for it.
fn load_always(config: &Arc<BootConfig>, loader: &Arc<Loader>) {
    let (config, loader) = (config.clone(), loader.clone());
    spawn_blocking(move || {
        for failure in config
            .load_modules
            .iter()
            .filter_map(|name| loader.load(name).err())
        {
            say!("modules: {failure}");
        }
    });
}

fn open_pool(
    config: &Arc<BootConfig>,
    keys: &Arc<Keyring>,
    loader: &Arc<Loader>,
) -> JoinHandle<Option<Arc<Store>>> {
    let (config, keys, loader) = (config.clone(), keys.clone(), loader.clone());
    spawn_blocking(move || {
        let started = Instant::now();
        report("pool", started, pool::open(&config, &keys, &loader).map(Told)).map(|told| Arc::new(told.0))
    })
}

fn bridge(loader: &Arc<Loader>) -> JoinHandle<Option<Arc<Networks>>> {
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
