//! The machine's TPM (TPM 2.0 Library, part 3: Commands): seals a secret so that only this TPM gives it
//! back, and only while its registers say what they said when it was sealed.
//!
//! The parent of sealed objects is the storage key that the TPM derives from its own seed whenever it is
//! asked with the same template, so nothing has to be kept in it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use store::luks::{Sealed, Secret};

/// The TPM by the kernel's resource manager, which forgets all that a user has made when he closes it.
const DEVICE: &str = "/dev/tpmrm0";
/// Secure Boot: whether it is on, and whose signatures it takes. Kernel and image may change.
const PCRS: [u8; 1] = [7];
/// No answer is longer.
const ANSWER: usize = 4096;

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
const CREATE_PRIMARY: u32 = 0x131;
const CREATE: u32 = 0x153;
const LOAD: u32 = 0x157;
const UNSEAL: u32 = 0x15e;
const START_AUTH_SESSION: u32 = 0x176;
const POLICY_PCR: u32 = 0x17f;
const POLICY_GET_DIGEST: u32 = 0x189;

const OWNER: u32 = 0x4000_0001;
const NONE: u32 = 0x4000_0007;
const PASSWORD: u32 = 0x4000_0009;

const SHA256: u16 = 0x000b;
const AES: u16 = 0x0006;
const CFB: u16 = 0x0043;
const NULL: u16 = 0x0010;
const ECC: u16 = 0x0023;
const KEYED_HASH: u16 = 0x0008;
const P256: u16 = 0x0003;

/// Stays in this TPM and under this parent; not counted as a guess.
const FIXED: u32 = 1 << 1 | 1 << 4 | 1 << 10;
/// Made here, needs no secret of its own, and decrypts nothing but the TPM's objects.
const STORAGE: u32 = FIXED | 1 << 5 | 1 << 6 | 1 << 16 | 1 << 17;

const POLICY: u8 = 1;
const TRIAL: u8 = 3;
/// `TPM_RC_POLICY_FAIL` of the first session.
const POLICY_FAILED: u32 = 0x99d;

/// What a TPM is spoken to through.
trait Channel: Read + Write {}
impl<T: Read + Write> Channel for T {}

/// Seals a secret.
///
/// # Errors
/// The machine has no TPM 2.0, or it refuses.
pub(crate) fn seal(secret: &Secret) -> anyhow::Result<Sealed> {
    seal_by(&mut open()?, secret)
}

/// The secret of a sealed object.
///
/// # Errors
/// The machine has no TPM, it is another one, or its registers say something else now.
pub(crate) fn unseal(sealed: &Sealed) -> anyhow::Result<Secret> {
    unseal_by(&mut open()?, sealed)
}

fn open() -> anyhow::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .context("The machine has no TPM 2.0 that could be opened")
}

fn seal_by(tpm: &mut impl Channel, secret: &Secret) -> anyhow::Result<Sealed> {
    let parent = storage_key(tpm)?;
    let session = policy(tpm, TRIAL, &PCRS)?;
    let mut answer = send(tpm, Command::new(NO_SESSIONS, POLICY_GET_DIGEST).word(session))?;
    let digest = answer.sized()?;
    let public = Command::body()
        .half(KEYED_HASH)
        .half(SHA256)
        .word(FIXED)
        .sized(&digest)
        .half(NULL)
        .sized(&[]);
    let sensitive = Command::body().sized(&[]).sized(secret.bytes());
    let create = Command::new(SESSIONS, CREATE)
        .word(parent)
        .authorised(PASSWORD)
        .sized(&sensitive.0)
        .sized(&public.0)
        // Nothing of its creation is kept.
        .sized(&[])
        .word(0);
    let mut answer = send(tpm, create)?;
    answer.word()?;
    Ok(Sealed {
        private: BASE64_STANDARD.encode(answer.sized()?),
        public: BASE64_STANDARD.encode(answer.sized()?),
        pcrs: PCRS.to_vec(),
    })
}

fn unseal_by(tpm: &mut impl Channel, sealed: &Sealed) -> anyhow::Result<Secret> {
    let decoded = |text: &str| {
        BASE64_STANDARD
            .decode(text)
            .context("The sealed secret is damaged")
    };
    let parent = storage_key(tpm)?;
    let load = Command::new(SESSIONS, LOAD)
        .word(parent)
        .authorised(PASSWORD)
        .sized(&decoded(&sealed.private)?)
        .sized(&decoded(&sealed.public)?);
    let object = send(tpm, load)
        .context("The machine's TPM is not the one that the secret was sealed by, or was cleared since")?
        .word()?;
    let session = policy(tpm, POLICY, &sealed.pcrs)?;
    let unseal = Command::new(SESSIONS, UNSEAL).word(object).authorised(session);
    let mut answer = send(tpm, unseal)?;
    answer.word()?;
    Ok(Secret::new(answer.sized()?))
}

/// Has the TPM derive its storage key (TCG TPM v2.0 Provisioning Guidance, the template of ECC P-256).
fn storage_key(tpm: &mut impl Channel) -> anyhow::Result<u32> {
    let public = Command::body()
        .half(ECC)
        .half(SHA256)
        .word(STORAGE)
        .sized(&[])
        .half(AES)
        .half(128)
        .half(CFB)
        .half(NULL)
        .half(P256)
        .half(NULL)
        .sized(&[])
        .sized(&[]);
    let create = Command::new(SESSIONS, CREATE_PRIMARY)
        .word(OWNER)
        .authorised(PASSWORD)
        .sized(&Command::body().sized(&[]).sized(&[]).0)
        .sized(&public.0)
        .sized(&[])
        .word(0);
    send(tpm, create)
        .context("The TPM does not make its storage key (its owner may have set a password)")?
        .word()
}

/// A session that is authorised by what the registers say now.
fn policy(tpm: &mut impl Channel, kind: u8, pcrs: &[u8]) -> anyhow::Result<u32> {
    let mut nonce = [0; 16];
    rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())
        .context("The kernel has no random bytes")?;
    let start = Command::new(NO_SESSIONS, START_AUTH_SESSION)
        .word(NONE)
        .word(NONE)
        .sized(&nonce)
        .sized(&[])
        .byte(kind)
        .half(NULL)
        .half(SHA256);
    let session = send(tpm, start)?.word()?;
    let mut selection = [0u8; 3];
    for pcr in pcrs {
        let byte = selection.get_mut(usize::from(pcr / 8));
        *byte.context("The sealed secret names a register that no TPM has")? |= 1 << (pcr % 8);
    }
    let command = Command::new(NO_SESSIONS, POLICY_PCR)
        .word(session)
        .sized(&[])
        .word(1)
        .half(SHA256)
        .byte(selection.len() as u8)
        .bytes(&selection);
    send(tpm, command)?;
    Ok(session)
}

/// A command as it is sent, or a part of one.
struct Command(Vec<u8>);

impl Command {
    fn new(tag: u16, code: u32) -> Command {
        // The size is filled in when it is sent.
        Command::body().half(tag).word(0).word(code)
    }

    fn body() -> Command {
        Command(Vec::new())
    }

    fn bytes(mut self, bytes: &[u8]) -> Command {
        self.0.extend_from_slice(bytes);
        self
    }

    fn byte(self, value: u8) -> Command {
        self.bytes(&[value])
    }

    fn half(self, value: u16) -> Command {
        self.bytes(&value.to_be_bytes())
    }

    fn word(self, value: u32) -> Command {
        self.bytes(&value.to_be_bytes())
    }

    /// Bytes with their number before them (`TPM2B_…`).
    fn sized(self, bytes: &[u8]) -> Command {
        self.half(u16::try_from(bytes.len()).unwrap_or(u16::MAX))
            .bytes(bytes)
    }

    /// The one session that authorises the command, with an empty password or as its policy says.
    fn authorised(self, session: u32) -> Command {
        let area = Command::body().word(session).sized(&[]).byte(0).sized(&[]);
        self.word(area.0.len() as u32).bytes(&area.0)
    }
}

/// What is left of an answer.
struct Answer(Vec<u8>);

impl Answer {
    fn take(&mut self, len: usize) -> anyhow::Result<Vec<u8>> {
        if len > self.0.len() {
            bail!("The TPM has answered less than it should");
        }
        let rest = self.0.split_off(len);
        Ok(std::mem::replace(&mut self.0, rest))
    }

    fn word(&mut self) -> anyhow::Result<u32> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn sized(&mut self) -> anyhow::Result<Vec<u8>> {
        let bytes = self.take(2)?;
        let len = bytes
            .iter()
            .fold(0, |value, byte| value << 8 | usize::from(*byte));
        self.take(len)
    }
}

fn send(tpm: &mut impl Channel, command: Command) -> anyhow::Result<Answer> {
    const HEADER: usize = 10;
    let mut bytes = command.0;
    let size = u32::try_from(bytes.len()).context("A command is too long")?;
    bytes
        .get_mut(2..6)
        .context("A command is too short")?
        .copy_from_slice(&size.to_be_bytes());
    tpm.write_all(&bytes).context("The TPM takes no command")?;
    tpm.flush().context("The TPM takes no command")?;
    let mut answer = vec![0; ANSWER];
    let mut filled = 0;
    loop {
        let room = answer.get_mut(filled..).unwrap_or_default();
        let read = tpm.read(room).context("The TPM does not answer")?;
        filled += read;
        let size = answer.get(2..6).and_then(|size| size.first_chunk());
        let size = size.map_or(0, |size| u32::from_be_bytes(*size) as usize);
        if read == 0 || filled >= HEADER && filled >= size {
            break;
        }
    }
    answer.truncate(filled);
    let mut answer = Answer(answer);
    answer.take(2)?;
    answer.word()?;
    match answer.word()? {
        0 => Ok(answer),
        POLICY_FAILED => bail!(
            "The TPM does not give the secret, because Secure Boot is not as it was when the pool was made"
        ),
        code => bail!("The TPM has refused a command (code {code:#x})"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::process::{Child, Command as Program, Stdio};

    use super::*;

    /// A software TPM with the state in a folder; ends with this.
    struct Software(Child, UnixStream);

    impl Software {
        fn start(state: &Path) -> Software {
            tools::need(&["swtpm"]);
            let socket = state.join("socket");
            let _ = std::fs::remove_file(&socket);
            let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            // It takes a connection that is made already, by its descriptor: nothing has to be waited for.
            let ours = UnixStream::connect(&socket).unwrap();
            let theirs = listener.accept().unwrap().0;
            let program = "exec swtpm socket --tpm2 --fd 3 --flags startup-clear --tpmstate dir=$STATE 3<&0";
            let child = Program::new("sh")
                .args(["-c", program])
                .env("STATE", state)
                .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
                .spawn()
                .unwrap();
            Software(child, ours)
        }
    }

    impl Drop for Software {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// `TPM2_PCR_Extend`
    fn extend(tpm: &mut UnixStream, pcr: u32) {
        let command = Command::new(SESSIONS, 0x182)
            .word(pcr)
            .authorised(PASSWORD)
            .word(1)
            .half(SHA256)
            .bytes(&[7; 32]);
        send(tpm, command).unwrap();
    }

    #[test]
    fn a_sealed_secret_opens_in_the_same_tpm_in_the_same_state_only() {
        let state = tempfile::tempdir().unwrap();
        let secret = Secret::new(b"0123456789abcdef".repeat(4));
        let sealed = seal_by(&mut Software::start(state.path()).1, &secret).unwrap();

        // After another start of the machine, and whatever else has been measured.
        let mut again = Software::start(state.path());
        extend(&mut again.1, 4);
        assert_eq!(unseal_by(&mut again.1, &sealed).unwrap().bytes(), secret.bytes());
        // It has room for a few objects only, and nobody here forgets them but its end.
        drop(again);
        let mut again = Software::start(state.path());
        extend(&mut again.1, 7);
        let refusal = format!("{:#}", unseal_by(&mut again.1, &sealed).unwrap_err());
        assert!(refusal.contains("Secure Boot is not as it was"), "{refusal}");
        drop(again);

        let other = tempfile::tempdir().unwrap();
        let refusal = unseal_by(&mut Software::start(other.path()).1, &sealed).unwrap_err();
        assert!(refusal.to_string().contains("not the one"), "{refusal:#}");
        for damaged in ["", "!", "AAAA"] {
            let sealed = Sealed {
                private: damaged.to_owned(),
                ..sealed.clone()
            };
            unseal_by(&mut Software::start(state.path()).1, &sealed).unwrap_err();
        }
    }
}
