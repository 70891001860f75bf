//! A pool on a loop device over a sparse file.

use std::fs::File;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use store::{Pool, Store, mkfs};

/// Held while a process is started and while a pool is unmounted: between `fork` and `exec` a child
/// holds copies of all descriptors, and a mount with an open one cannot be unmounted.
static STARTING: Mutex<()> = Mutex::new(());

pub(crate) fn spawn(command: &mut Command) -> Child {
    let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let spawned = command.spawn();
    spawned.unwrap_or_else(|error| panic!("Cannot run {command:?} ({error}); install it."))
}

/// A store that is unmounted when the test ends, however it ends.
pub(crate) struct TestStore {
    store: Option<Arc<Store>>,
    pool: Option<Pool>,
    _folder: tempfile::TempDir,
}

impl TestStore {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        mkfs::write(&image, "monobloc-test").unwrap();
        let backing = File::options().read(true).write(true).open(&image).unwrap();
        let device = sys::loopdev::LoopDevice::attach(&backing)
            .expect("Cannot attach a loop device; run the tests as root on a kernel with the loop driver.");
        let pool = Pool::mount(device.path(), &folder.path().join("pool")).unwrap();
        let store = Arc::new(Store::open(&folder.path().join("pool")).unwrap());
        Self {
            store: Some(store),
            pool: Some(pool),
            _folder: folder,
        }
    }

    pub(crate) fn store(&self) -> Arc<Store> {
        self.store.clone().unwrap()
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        drop(self.store.take());
        let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(reason)) = self.pool.take().map(Pool::unmount) {
            eprintln!("{reason}");
        }
    }
}
