//! `monobloc send` and `monobloc receive`.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use monobloc::client::{Api, Beginning, DIGEST_AND_MARK, SENT, Source};
use monobloc::progress::{self, Progress, Step};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::pool::{api, stages};
use super::snapshot::{kind, parse};
use super::text;

/// How long the appliance may take for an answer, or to begin.
const LIMIT: Duration = Duration::from_secs(600);
/// Progress is told after so many bytes.
const TOLD: u64 = 8 << 20;

/// Send a zone or volume to a file, or to another machine
///
/// What is sent is a snapshot; where none is named, one is made, and stays. It carries a digest of all of
/// it, and nothing of it is seen at the other end before that was found right. What was cut off goes on
/// where it was when the same command is given again (not to standard output). With `--from` only what has
/// changed since an earlier snapshot is sent, to whoever has that. Volumes are sent by themselves, and a
/// zone's image must be at the other end.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc send web@monday > web.monday    to a file, by standard output
  monobloc send web@monday -o web.monday   the same, and it goes on where it was cut off
  monobloc send web@tuesday --from monday -o web.tuesday
                                           only what has changed since
  monobloc send web@monday --to other      straight to another machine
  monobloc send --volume data --to other --name data2
                                           a volume, as it is now, under another name")]
pub(super) struct Send {
    #[arg(value_name = "ZONE[@SNAPSHOT]")]
    of: String,
    /// A volume is named, not a zone
    #[arg(short, long)]
    volume: bool,
    /// Only what differs from this earlier snapshot, which the other end has
    #[arg(long, value_name = "SNAPSHOT")]
    from: Option<String>,
    /// The file to write; one that was cut off is gone on with
    #[arg(short, long, value_name = "FILE", conflicts_with = "to")]
    output: Option<PathBuf>,
    /// The machine that is to have it
    #[arg(long, value_name = "MACHINE")]
    to: Option<String>,
    /// What it is called there
    #[arg(long, requires = "to")]
    name: Option<String>,
    /// The machine that has it, where several run
    #[arg(short, long)]
    machine: Option<String>,
}

/// Receive a zone or volume that was sent
///
/// A whole snapshot becomes a new zone (not started) or volume, a difference one more snapshot of the one
/// that it is of: `monobloc snapshot rollback` brings that there. What was cut off goes on where it was
/// when it is received again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc receive < web.monday
  monobloc receive --name web2 web.monday  under another name
  monobloc receive web.tuesday             what has changed since, as web@tuesday
  monobloc receive --json < web.monday")]
pub(super) struct Receive {
    /// What was sent; standard input where it is left out
    file: Option<PathBuf>,
    /// What it is called here; for a difference, the one that has the earlier snapshot
    #[arg(long)]
    name: Option<String>,
    /// The machine's name, where several run
    #[arg(short, long)]
    machine: Option<String>,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

/// `monobloc send`
pub(super) fn send(arguments: &Send) -> anyhow::Result<()> {
    let (of, snapshot) = parse(&arguments.of, kind(arguments.volume))?;
    ensure!(
        arguments.output.is_some() || arguments.to.is_some() || !io::stdout().is_terminal(),
        "Nothing of this can be read on a terminal; say where it goes: `> FILE`, `-o FILE` or `--to MACHINE`"
    );
    let (name, here) = api(arguments.machine.as_deref())?;
    let there = arguments.to.as_deref().map(|to| api(Some(to))).transpose()?;
    if there.as_ref().is_some_and(|(there, _)| *there == name) && arguments.name.is_none() {
        bail!("{name} has it already; give another name (`--name`) or another machine");
    }
    let progress = progress::for_stderr();
    let snapshot = match snapshot {
        Some(snapshot) => snapshot.to_owned(),
        None => {
            let made = here.create_snapshot(&of, None, false, LIMIT)?;
            let snapshot = made.get("name").and_then(Value::as_str).unwrap_or_default();
            eprintln!("Sending {}@{snapshot}, which stays there.", of.name);
            snapshot.to_owned()
        }
    };
    let source = Source {
        of,
        snapshot,
        from: arguments.from.clone(),
    };
    match (&arguments.output, there) {
        (_, Some((_, there))) => straight(
            &here,
            &there,
            source,
            arguments.name.as_deref(),
            progress.as_ref(),
        )
        .map(drop),
        (Some(file), None) => to_file(&here, &source, file, progress.as_ref()),
        (None, None) => {
            let step = Bytes::begin(progress.as_ref(), &format!("send {}", source.snapshot), 0);
            let mut out = io::stdout().lock();
            here.send_snapshot(&source, 0, &mut out, LIMIT, &mut |done| step.tell(done))?;
            step.finish();
            Ok(())
        }
    }
}

/// `monobloc receive`
pub(super) fn receive(arguments: &Receive) -> anyhow::Result<()> {
    let (_, api) = api(arguments.machine.as_deref())?;
    let progress = progress::for_stderr();
    let mut from: Box<dyn Read + std::marker::Send> = match &arguments.file {
        Some(file) => Box::new(File::open(file).with_context(|| format!("Cannot open {}", file.display()))?),
        None if io::stdin().is_terminal() => {
            bail!("Say what is to be received: `< FILE`, or the file's name")
        }
        None => Box::new(io::stdin()),
    };
    let beginning = Beginning::read(&mut from).context("Cannot receive this")?;
    let name = arguments.name.as_deref();
    let (id, received) = api.offer(&beginning, name, LIMIT)?;
    // Of what has come already nothing is sent once more.
    let length = beginning.bytes().len() as u64;
    let rest: Box<dyn Read + std::marker::Send> = if received < length {
        let bytes = beginning.bytes().get(received as usize..).unwrap_or_default();
        Box::new(io::Cursor::new(bytes.to_vec()).chain(from))
    } else {
        let skipped = io::copy(&mut (&mut from).take(received - length), &mut io::sink())
            .context("Cannot read what is to be received")?;
        ensure!(
            skipped == received - length,
            "More of this has come already than is here: the file was cut off"
        );
        from
    };
    let told = carry(&api, &id, received, rest, name, &beginning, progress.as_ref())?;
    if arguments.json {
        return text::print_json(&told);
    }
    text::print(&said(&told))
}

/// From one machine to the other, through this one.
fn straight(
    here: &Api,
    there: &Api,
    source: Source,
    name: Option<&str>,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let beginning = here.beginning(&source, LIMIT)?;
    let (id, received) = there.offer(&beginning, name, LIMIT)?;
    let (reader, mut writer) = io::pipe().context("Cannot make a pipe")?;
    let sender = here.clone();
    let sending =
        std::thread::spawn(move || sender.send_snapshot(&source, received, &mut writer, LIMIT, &mut |_| {}));
    let told = carry(there, &id, received, reader, name, &beginning, progress);
    let sent = sending
        .join()
        .unwrap_or_else(|_| Err(monobloc::client::ApiError::Stream(io::ErrorKind::Other.into())));
    match (told, sent) {
        (Ok(told), Ok(())) => text::print(&said(&told)),
        // Where the sender fails, what has come is not whole, which would be told otherwise.
        (_, Err(error)) => {
            Err(error).context("The sending machine has stopped; send it again, and it goes on")
        }
        (Err(error), Ok(())) => Err(error),
    }
}

/// Brings a stream to a machine and has it taken in.
fn carry(
    api: &Api,
    id: &str,
    received: u64,
    from: impl Read + std::marker::Send + 'static,
    name: Option<&str>,
    beginning: &Beginning,
    progress: &dyn Progress,
) -> anyhow::Result<Value> {
    let step = Bytes::begin(progress, &format!("send {}", beginning.name()), received);
    let (sender, coming) = channel();
    std::thread::scope(|scope| {
        // Steps are shown by this thread alone.
        let uploading = scope.spawn(|| {
            let told = sender.clone();
            let done = api.upload(id, received, from, move |done| {
                let _ = told.send(Some(done));
            });
            // Whoever reads the rest may never come to its end.
            let _ = sender.send(None);
            done
        });
        while let Ok(Some(done)) = coming.recv() {
            step.tell(done);
        }
        let done = uploading.join();
        done.unwrap_or_else(|_| Err(monobloc::client::ApiError::Stream(io::ErrorKind::Other.into())))
    })?;
    step.finish();
    let step = progress.step(&format!("take in {}", beginning.name()));
    let told = api.take_in(id, name, LIMIT, &mut stages(&*step))?;
    step.finish();
    Ok(told)
}

/// To a file, under another name until it is whole.
fn to_file(api: &Api, source: &Source, path: &Path, progress: &dyn Progress) -> anyhow::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let what = || format!("Cannot write {}", part.display());
    let mut file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(&part)
        .with_context(what)?;
    let beginning = api.beginning(source, LIMIT)?;
    let mut length = file.metadata().with_context(what)?.len();
    if length > 0 && !Beginning::read(&mut file).is_ok_and(|known| known == beginning) {
        // The beginning of something else.
        file.set_len(0).with_context(what)?;
        length = 0;
    }
    let step = Bytes::begin(progress, &format!("send {}", beginning.name()), length);
    api.send_snapshot(source, length, &mut file, LIMIT, &mut |done| step.tell(done))?;
    file.sync_all().with_context(what)?;
    step.finish();
    let step = progress.step("check it");
    if !is_whole(&mut file).with_context(what)? {
        fs::remove_file(&part).with_context(what)?;
        bail!("What came does not have the digest that was promised; send it again");
    }
    step.finish();
    fs::rename(&part, path).with_context(|| format!("Cannot write {}", path.display()))
}

/// Whether a stream ends with the digest of all before.
fn is_whole(file: &mut File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    let Some(end) = length.checked_sub(DIGEST_AND_MARK) else {
        return Ok(false);
    };
    file.seek(SeekFrom::Start(0))?;
    let mut hash = Sha256::new();
    io::copy(&mut (&mut *file).take(end), &mut hash)?;
    let mut ending = Vec::new();
    file.read_to_end(&mut ending)?;
    let digest: [u8; 32] = hash.finalize().into();
    Ok(ending == [SENT.as_slice(), &digest].concat())
}

fn said(told: &Value) -> String {
    let word = |key: &str| told.get(key).and_then(Value::as_str).unwrap_or_default();
    let (of, name) = (word("of"), word("name"));
    if told.get("new").and_then(Value::as_bool) != Some(true) {
        return format!("{of}@{name} is there; `monobloc snapshot rollback {of}@{name}` makes {of} that.\n");
    }
    match word("kind") {
        "zone" => format!("{of} is there; start it with `docker start {of}`.\n"),
        _ => format!("{of} is there.\n"),
    }
}

/// A step whose length nobody knows.
struct Bytes {
    step: Box<dyn Step>,
    done: Cell<u64>,
    shown: Cell<u64>,
}

impl Bytes {
    fn begin(progress: &dyn Progress, name: &str, from: u64) -> Self {
        let step = progress.step(name);
        if from > 0 {
            step.message(&format!("going on at {}", text::size(from)));
        }
        Self {
            step,
            done: Cell::new(from),
            shown: Cell::new(from),
        }
    }

    fn tell(&self, done: u64) {
        self.done.set(done);
        if done >= self.shown.get() + TOLD {
            self.shown.set(done);
            self.step.message(&text::size(done));
        }
    }

    fn finish(self) {
        self.step.message(&text::size(self.done.get()));
        self.step.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_stream_is_whole_when_it_ends_with_its_digest() {
        let digest: [u8; 32] = Sha256::digest(b"content").into();
        let whole = [b"content".as_slice(), SENT, &digest].concat();
        let checked = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            is_whole(&mut file).unwrap()
        };
        assert!(checked(&whole));
        assert!(!checked(b"") && !checked(&whole[1..]) && !checked(&whole[..whole.len() - 1]));
    }

    #[test]
    fn it_is_told_what_to_do_with_what_came() {
        let told = said(&json!({"done": true, "kind": "zone", "of": "web", "name": "monday", "new": true}));
        assert!(told.contains("docker start web"), "{told}");
        let told = said(&json!({"done": true, "kind": "zone", "of": "web", "name": "tuesday", "new": false}));
        assert!(told.contains("rollback web@tuesday"), "{told}");
    }
}
