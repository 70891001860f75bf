//! QEMU's command line for an appliance: virtio devices on user networking, the serial console on a
//! socket and in a file, the node bundle as a fw_cfg file.

pub mod acceleration;
pub mod disks;
pub mod qmp;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use handover::{FW_CFG_BUNDLE, Protocol};
use serde::{Deserialize, Serialize};

pub use acceleration::Acceleration;

pub const PROGRAM: &str = "qemu-system-x86_64";
/// UEFI firmware of Debian's package `ovmf`.
pub const FIRMWARE_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// The firmware's settings, to be copied for each machine.
pub const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Serial number of [`Qemu::disk`].
pub const FIRST_SERIAL: &str = "first";
/// Id of the controller of [`Qemu::more_disks`]; the disks' own are `disk-` and the serial number.
pub const CONTROLLER: &str = "scsi";

/// What the machine starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// The kernel at once, without firmware that looks for it.
    Direct {
        kernel: PathBuf,
        initrd: PathBuf,
        command_line: String,
    },
    /// The image's `.efi` file, by UEFI firmware.
    Efi {
        image: PathBuf,
        /// The machine's own copy of [`FIRMWARE_VARIABLES`].
        variables: PathBuf,
    },
}

/// A port of this machine's loopback that leads to one of the appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    pub protocol: Protocol,
    pub host: u16,
    pub guest: u16,
}

/// A machine for QEMU to imitate.
#[derive(Debug, Clone)]
pub struct Qemu {
    pub name: String,
    pub acceleration: Acceleration,
    pub boot: Boot,
    /// Bytes.
    pub memory: u64,
    pub cpus: u32,
    /// A raw disk image.
    pub disk: Option<PathBuf>,
    /// More of them, each with its serial number, on a controller where disks can be plugged and
    /// pulled while the machine runs.
    pub more_disks: Vec<(String, PathBuf)>,
    /// Socket of a software TPM (`swtpm`); none: a machine without a TPM.
    pub tpm: Option<PathBuf>,
    /// None: a machine without a network card.
    pub forwards: Option<Vec<Forward>>,
    /// The node bundle as JSON; QEMU reads it once, at the start.
    pub bundle: Option<PathBuf>,
    /// Everything that the serial console says.
    pub log: PathBuf,
    /// Socket of the serial console.
    pub console: PathBuf,
    /// Socket of QEMU's monitor.
    pub qmp: PathBuf,
    /// Whether a machine that resets starts anew; else QEMU ends.
    pub restarts: bool,
}

impl Qemu {
    /// The arguments after the program's name.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut line = Line::default();
        line.add("-name", &self.name);
        line.flag("-nodefaults");
        line.flag("-no-user-config");
        line.add("-display", "none");
        // Nothing of what a PC has besides is of use, and what is not there needs no driver.
        line.add("-machine", "q35,usb=off,sata=off,smbus=off,hpet=off,vmport=off");
        for (option, value) in self.acceleration.arguments() {
            line.add(option, value);
        }
        line.add("-smp", self.cpus.to_string());
        line.add("-m", format!("{}M", self.memory >> 20));
        line.add("-device", "virtio-rng-pci");
        if !self.restarts {
            line.flag("-no-reboot");
        }
        self.boot(&mut line);
        self.console(&mut line);
        self.devices(&mut line);
        line.0
    }

    fn boot(&self, line: &mut Line) {
        match &self.boot {
            Boot::Direct {
                kernel,
                initrd,
                command_line,
            } => {
                line.add("-kernel", kernel);
                line.add("-initrd", initrd);
                line.add("-append", command_line);
            }
            Boot::Efi { image, variables } => {
                line.add(
                    "-drive",
                    format!("if=pflash,format=raw,readonly=on,file={FIRMWARE_CODE}"),
                );
                line.add_path("-drive", "if=pflash,format=raw,file=", variables);
                // The firmware starts what it is given as a kernel like any UEFI program.
                line.add("-kernel", image);
            }
        }
    }

    fn console(&self, line: &mut Line) {
        let mut value = OsString::from("socket,id=console,server=on,wait=off,path=");
        value.push(escaped(self.console.as_os_str()));
        value.push(",logfile=");
        value.push(escaped(self.log.as_os_str()));
        line.add("-chardev", value);
        line.add("-serial", "chardev:console");
        let mut value = OsString::from("socket,id=qmp,server=on,wait=off,path=");
        value.push(escaped(self.qmp.as_os_str()));
        line.add("-chardev", value);
        line.add("-mon", "chardev=qmp,mode=control");
    }

    fn devices(&self, line: &mut Line) {
        if let Some(forwards) = &self.forwards {
            let forwards: String = forwards.iter().map(forward).collect();
            line.add("-netdev", format!("user,id=network{forwards}"));
            // No boot ROM: nothing is booted from the network, and looking takes seconds.
            line.add("-device", "virtio-net-pci,netdev=network,romfile=");
        }
        if let Some(disk) = &self.disk {
            line.add_path("-drive", "if=none,id=disk,format=raw,discard=unmap,file=", disk);
            line.add(
                "-device",
                format!("virtio-blk-pci,drive=disk,serial={FIRST_SERIAL}"),
            );
        }
        if !self.more_disks.is_empty() {
            line.add("-device", format!("virtio-scsi-pci,id={CONTROLLER}"));
        }
        for (serial, path) in &self.more_disks {
            line.add_path(
                "-drive",
                &format!("if=none,id={serial},format=raw,discard=unmap,file="),
                path,
            );
            line.add(
                "-device",
                format!(
                    "scsi-hd,id={},bus={CONTROLLER}.0,drive={serial},serial={serial}",
                    disks::id(serial)
                ),
            );
        }
        if let Some(tpm) = &self.tpm {
            line.add_path("-chardev", "socket,id=tpm,path=", tpm);
            line.add("-tpmdev", "emulator,id=tpm,chardev=tpm");
            line.add("-device", "tpm-crb,tpmdev=tpm");
        }
        if let Some(bundle) = &self.bundle {
            line.add_path("-fw_cfg", &format!("name={FW_CFG_BUNDLE},file="), bundle);
        }
    }
}

fn forward(forward: &Forward) -> String {
    let protocol = match forward.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!(
        ",hostfwd={protocol}:127.0.0.1:{}-:{}",
        forward.host, forward.guest
    )
}

/// Arguments under construction.
#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, option: &str) {
        self.0.push(option.into());
    }

    fn add(&mut self, option: &str, value: impl AsRef<OsStr>) {
        self.flag(option);
        self.0.push(value.as_ref().to_owned());
    }

    /// A value that ends with a path.
    fn add_path(&mut self, option: &str, before: &str, path: &std::path::Path) {
        let mut value = OsString::from(before);
        value.push(escaped(path.as_os_str()));
        self.add(option, value);
    }
}

/// A path within comma-separated settings: QEMU reads two commas as one.
pub(crate) fn escaped(path: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let doubled = path.as_bytes().iter().flat_map(|byte| {
        let times = if *byte == b',' { 2 } else { 1 };
        std::iter::repeat_n(*byte, times)
    });
    OsString::from_vec(doubled.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Qemu {
        Qemu {
            name: "quickstart".into(),
            acceleration: Acceleration::Emulated,
            boot: Boot::Direct {
                kernel: "/image/vmlinuz".into(),
                initrd: "/image/initrd".into(),
                command_line: "console=ttyS0 quiet".into(),
            },
            memory: 1 << 30,
            cpus: 2,
            disk: Some("/state/a,b/disk.img".into()),
            more_disks: vec![("second".into(), "/state/second.img".into())],
            tpm: None,
            forwards: Some(vec![
                Forward {
                    protocol: Protocol::Tcp,
                    host: 2376,
                    guest: 2376,
                },
                Forward {
                    protocol: Protocol::Udp,
                    host: 5353,
                    guest: 53,
                },
            ]),
            bundle: Some("/state/bundle.json".into()),
            log: "/state/console.log".into(),
            console: "/state/console.sock".into(),
            qmp: "/state/qmp.sock".into(),
            restarts: true,
        }
    }

    fn text(machine: &Qemu) -> String {
        let words: Vec<_> = machine
            .arguments()
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        words.join(" ")
    }

    #[test]
    fn a_machine_has_what_was_asked_for() {
        let line = text(&machine());
        for part in [
            "-smp 2 -m 1024M",
            "-kernel /image/vmlinuz -initrd /image/initrd -append console=ttyS0 quiet",
            "user,id=network,hostfwd=tcp:127.0.0.1:2376-:2376,hostfwd=udp:127.0.0.1:5353-:53",
            "name=opt/org.monobloc/bundle,file=/state/bundle.json",
            "path=/state/console.sock,logfile=/state/console.log",
            "format=raw,discard=unmap,file=/state/a,,b/disk.img",
            "scsi-hd,id=disk-second,bus=scsi.0,drive=second,serial=second",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains("-no-reboot"));
    }

    #[test]
    fn the_cpus_of_a_machine_run_as_the_verdict_says() {
        for (acceleration, part) in [
            (Acceleration::Kvm, "-accel kvm -cpu host"),
            (
                Acceleration::Emulated,
                "-accel tcg,thread=multi -cpu max,-erms,-fsrm",
            ),
            (
                Acceleration::EmulatedOnOneThread,
                "-accel tcg,thread=single -cpu max,-erms,-fsrm",
            ),
        ] {
            let line = text(&Qemu {
                acceleration,
                ..machine()
            });
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn what_was_not_asked_for_is_not_there() {
        let line = text(&Qemu {
            disk: None,
            more_disks: Vec::new(),
            forwards: None,
            bundle: None,
            restarts: false,
            ..machine()
        });
        for part in ["-drive", "-netdev", "-fw_cfg", "virtio-net", "virtio-blk", "scsi"] {
            assert!(!line.contains(part), "{part} is in {line}");
        }
        assert!(line.contains("-no-reboot"));
    }

    #[test]
    fn firmware_starts_the_efi_file() {
        let line = text(&Qemu {
            boot: Boot::Efi {
                image: "/image/quickstart.efi".into(),
                variables: "/state/variables.fd".into(),
            },
            ..machine()
        });
        assert!(
            line.contains("readonly=on,file=/usr/share/OVMF")
                && line.contains("file=/state/variables.fd")
                && line.contains("-kernel /image/quickstart.efi")
                && !line.contains("-initrd"),
            "{line}"
        );
    }
}
