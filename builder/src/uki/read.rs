//! The reader of unified kernel images.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use goblin::pe::PE;
use goblin::pe::options::ParseOptions;

/// The sections of a PE file by name, each with its exact content.
///
/// # Errors
/// It is no PE file, or it ends in the middle of a section.
pub fn sections(image: &[u8]) -> anyhow::Result<BTreeMap<String, &[u8]>> {
    // The headers are all that is needed.
    let mut options = ParseOptions::default();
    options.resolve_rva = false;
    options.parse_attribute_certificates = false;
    options.parse_tls_data = false;
    options.parse_resources = false;
    options.parse_imports = false;
    let pe = PE::parse_with_opts(image, &options).context("This is no UEFI image (PE file)")?;
    let mut found = BTreeMap::new();
    for section in &pe.sections {
        let name = section
            .name()
            .context("A section of the image has a name that is not UTF-8")?;
        let start = usize::try_from(section.pointer_to_raw_data)?;
        let size = usize::try_from(section.virtual_size.min(section.size_of_raw_data))?;
        let content = start.checked_add(size).and_then(|end| image.get(start..end));
        ensure!(
            content.is_some(),
            "The image ends in the middle of its section {name}; copy it again"
        );
        found.extend(content.map(|content| (name.to_owned(), content)));
    }
    Ok(found)
}
