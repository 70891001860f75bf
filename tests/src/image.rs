//! The images under test, built once per process from their recipes, by the builder itself.

use std::sync::OnceLock;

use anyhow::anyhow;
use monobloc::image::{BuildOptions, build};
use monobloc::recipe::Recipe;

use crate::setup::workspace;

/// Which image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `images/quickstart.toml`
    Quickstart,
    /// `images/web.toml`.
    Web,
    /// `images/quickstart.toml` with `allow-host-privilege`.
    HostPrivilege,
    /// `images/quickstart.toml` with the key of what it claims in the bundle.
    Encrypting,
}

pub use monobloc::image::BuiltImage as Built;

/// Builds an image, or finds it built.
///
/// # Errors
/// It cannot be built.
pub fn built(kind: Kind) -> anyhow::Result<&'static Built> {
    static BUILT: [OnceLock<Result<Built, String>>; 4] = [const { OnceLock::new() }; 4];
    let file = match kind {
        Kind::Quickstart | Kind::HostPrivilege | Kind::Encrypting => "images/quickstart.toml",
        Kind::Web => "images/web.toml",
    };
    let built = BUILT[kind as usize].get_or_init(|| {
        let make = || {
            let mut recipe = Recipe::load(&workspace().join(file))?;
            recipe.zone_rules.allow_host_privilege = kind == Kind::HostPrivilege;
            if kind == Kind::Encrypting {
                recipe.pool.encryption = Some(handover::PoolEncryption::Bundle);
            }
            build(
                &recipe,
                &BuildOptions::from_environment()?,
                &monobloc::progress::Silent,
            )
        };
        make().map_err(|error: anyhow::Error| format!("{error:#}"))
    });
    built.as_ref().map_err(|error| anyhow!("{error}"))
}
