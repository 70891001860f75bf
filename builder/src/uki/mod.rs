//! Unified kernel images: systemd's UEFI stub with kernel, initramfs and command line as sections
//! (<https://uapi-group.org/specifications/specs/unified_kernel_image/>).
//!
//! The stub's bytes stay as they are. Sections are added behind it, both in the file and in memory,
//! and the headers that count them are written anew.

pub mod read;

use anyhow::{Context, bail, ensure};
use object::endian::LittleEndian as LE;
use object::pe::{
    self, IMAGE_NT_OPTIONAL_HDR64_MAGIC, IMAGE_SCN_CNT_INITIALIZED_DATA, IMAGE_SCN_MEM_READ, ImageDosHeader,
    ImageNtHeaders64, ImageSectionHeader,
};
use object::pod::{bytes_of, from_bytes, from_bytes_mut, slice_from_bytes};

/// Alignment of the added sections in memory: a page, as firmware that protects pages expects.
const PAGE: u32 = 0x1000;

/// What becomes the sections of the image.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// `os-release(5)`; boot menus take the name from it.
    pub os_release: &'a str,
    pub command_line: &'a str,
    /// `uname -r` of the kernel.
    pub release: &'a str,
    pub initrd: &'a [u8],
    pub kernel: &'a [u8],
}

/// Puts the parts behind a stub.
///
/// # Errors
/// The stub is no 64-bit PE file, has no room for more section headers or has such sections already;
/// or the whole would not fit in 4 GiB.
pub fn write(stub: &[u8], parts: &Parts<'_>) -> anyhow::Result<Vec<u8>> {
    let sections: [(&[u8], &[u8]); 5] = [
        (b".osrel", parts.os_release.as_bytes()),
        (b".cmdline", parts.command_line.as_bytes()),
        (b".uname", parts.release.as_bytes()),
        (b".initrd", parts.initrd),
        // Last, so that a kernel that unpacks itself in place overruns nothing.
        (b".linux", parts.kernel),
    ];
    let layout = Layout::of(stub)?;
    let mut image = stub.to_vec();
    let mut headers = Vec::new();
    let mut address = layout.end_of_memory;
    for (name, content) in sections {
        ensure!(
            !layout.names.iter().any(|known| trimmed(known) == name),
            "The stub has a section {} already; take the stub of Debian's systemd-boot-efi",
            String::from_utf8_lossy(name)
        );
        address = address
            .checked_next_multiple_of(PAGE)
            .context("The image is too large")?;
        let padded = image
            .len()
            .next_multiple_of(usize::try_from(layout.file_alignment)?);
        image.resize(padded, 0);
        let header = section_header(name, address, content.len(), image.len(), layout.file_alignment)?;
        image.extend_from_slice(content);
        address = address
            .checked_add(header.virtual_size.get(LE))
            .context("The image is too large")?;
        headers.push(header);
    }
    image.resize(
        image
            .len()
            .next_multiple_of(usize::try_from(layout.file_alignment)?),
        0,
    );
    layout.add_headers(&mut image, &headers, address)?;
    Ok(image)
}

/// Where the stub's headers are and what they say.
struct Layout {
    nt_headers: usize,
    /// Behind the last section header.
    end_of_headers: usize,
    /// Where the first section's content begins: no header may reach it.
    start_of_content: usize,
    end_of_memory: u32,
    file_alignment: u32,
    names: Vec<[u8; 8]>,
}

impl Layout {
    fn of(stub: &[u8]) -> anyhow::Result<Self> {
        let bad = "The UEFI stub is no 64-bit PE file; take Debian's systemd-boot-efi";
        let (dos, _) = from_bytes::<ImageDosHeader>(stub).ok().context(bad)?;
        ensure!(dos.e_magic.get(LE) == pe::IMAGE_DOS_SIGNATURE, bad);
        let nt_headers = usize::try_from(dos.e_lfanew.get(LE))?;
        let rest = stub.get(nt_headers..).context(bad)?;
        let (nt, _) = from_bytes::<ImageNtHeaders64>(rest).ok().context(bad)?;
        ensure!(
            nt.signature.get(LE) == pe::IMAGE_NT_SIGNATURE
                && nt.optional_header.magic.get(LE) == IMAGE_NT_OPTIONAL_HDR64_MAGIC,
            bad
        );
        // Signature and file header, then the optional header whose size the file header says.
        let optional = 4 + size_of::<pe::ImageFileHeader>();
        let table = nt_headers + optional + usize::from(nt.file_header.size_of_optional_header.get(LE));
        let count = usize::from(nt.file_header.number_of_sections.get(LE));
        let rest = stub.get(table..).context(bad)?;
        let (sections, _) = slice_from_bytes::<ImageSectionHeader>(rest, count)
            .ok()
            .context(bad)?;
        let file_alignment = nt.optional_header.file_alignment.get(LE);
        if !file_alignment.is_power_of_two() {
            bail!(bad);
        }
        let start = sections
            .iter()
            .map(|section| section.pointer_to_raw_data.get(LE))
            .filter(|at| *at != 0)
            .min();
        let end = sections
            .iter()
            .map(|section| {
                section
                    .virtual_address
                    .get(LE)
                    .saturating_add(section.virtual_size.get(LE))
            })
            .max();
        Ok(Self {
            nt_headers,
            end_of_headers: table + count * size_of::<ImageSectionHeader>(),
            start_of_content: usize::try_from(start.context(bad)?)?,
            end_of_memory: end.context(bad)?,
            file_alignment,
            names: sections.iter().map(|section| section.name).collect(),
        })
    }

    fn add_headers(&self, image: &mut [u8], headers: &[ImageSectionHeader], end: u32) -> anyhow::Result<()> {
        let room = (self.start_of_content - self.end_of_headers.min(self.start_of_content))
            / size_of::<ImageSectionHeader>();
        ensure!(
            headers.len() <= room,
            "The UEFI stub has room for {room} more sections only and {} are needed; take the stub of Debian's \
             systemd-boot-efi",
            headers.len()
        );
        let mut at = self.end_of_headers;
        for header in headers {
            let bytes = bytes_of(header);
            image
                .get_mut(at..at + bytes.len())
                .context("The stub is too short")?
                .copy_from_slice(bytes);
            at += bytes.len();
        }
        let rest = image
            .get_mut(self.nt_headers..)
            .context("The stub is too short")?;
        let (nt, _) = from_bytes_mut::<ImageNtHeaders64>(rest)
            .ok()
            .context("The stub is too short")?;
        let count = nt.file_header.number_of_sections.get(LE);
        nt.file_header
            .number_of_sections
            .set(LE, count + u16::try_from(headers.len())?);
        let optional = &mut nt.optional_header;
        let alignment = optional.section_alignment.get(LE).max(1);
        let end = end
            .checked_next_multiple_of(alignment)
            .context("The image is too large")?;
        optional.size_of_image.set(LE, end);
        let added: u32 = headers.iter().map(|header| header.size_of_raw_data.get(LE)).sum();
        let data = optional.size_of_initialized_data.get(LE).saturating_add(added);
        optional.size_of_initialized_data.set(LE, data);
        // Zero is "not computed"; firmware does not look at it.
        optional.check_sum.set(LE, 0);
        Ok(())
    }
}

fn section_header(
    name: &[u8],
    address: u32,
    length: usize,
    at: usize,
    alignment: u32,
) -> anyhow::Result<ImageSectionHeader> {
    let too_large = "The image is too large: a PE file ends at 4 GiB";
    let size = u32::try_from(length).context(too_large)?;
    let raw = size.checked_next_multiple_of(alignment).context(too_large)?;
    let mut padded = [0; 8];
    padded
        .get_mut(..name.len())
        .context("A section's name has at most 8 letters")?
        .copy_from_slice(name);
    let mut header = ImageSectionHeader {
        name: padded,
        ..ImageSectionHeader::default()
    };
    header.virtual_size.set(LE, size);
    header.virtual_address.set(LE, address);
    header.size_of_raw_data.set(LE, raw);
    header
        .pointer_to_raw_data
        .set(LE, u32::try_from(at).context(too_large)?);
    header
        .characteristics
        .set(LE, IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ);
    Ok(header)
}

fn trimmed(name: &[u8; 8]) -> &[u8] {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.get(..end).unwrap_or_default()
}
