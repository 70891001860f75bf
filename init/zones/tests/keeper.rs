//! The keeper and its client, without zones.

#![allow(clippy::unwrap_used, reason = "it is how a test's helper fails")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;

use zones::keeper::{Client, Server, Turn};

/// Serves one supervisor after the other, and says when it has lost the last.
fn serve(mut server: Server, sockets: Vec<std::os::fd::OwnedFd>) -> std::thread::JoinHandle<Server> {
    std::thread::spawn(move || {
        for socket in sockets {
            server.attach_supervisor(socket).unwrap();
            while server.turn().unwrap() != Turn::SupervisorGone {}
        }
        server
    })
}

#[test]
fn all_that_is_kept_comes_back_however_much_it_is() {
    const MANY: usize = 500;
    let (first, keepers_first) = sys::socket::pair().unwrap();
    let (second, keepers_second) = sys::socket::pair().unwrap();
    let keeper = serve(Server::new().unwrap(), vec![keepers_first, keepers_second]);
    // Each supervisor has a runtime of its own, and dies with it.
    let supervise = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    supervise().block_on(async {
        let (client, restored) = Client::connect(first).await.unwrap();
        assert!(restored.kept.is_empty());
        for number in 0..MANY {
            let mut file = tempfile::tempfile().unwrap();
            write!(file, "{number}").unwrap();
            client
                .keep(&format!("file {number}"), file.as_fd())
                .await
                .unwrap();
        }
        client.release("file 0").await.unwrap();
    });
    supervise().block_on(async {
        let (_, restored) = Client::connect(second).await.unwrap();
        assert_eq!(restored.kept.len(), MANY - 1);
        let mut file = File::from(restored.kept["file 77"].try_clone().unwrap());
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "77");
    });
    keeper.join().unwrap();
}

#[test]
fn a_supervisor_that_sends_nonsense_is_let_go_and_the_next_is_served() {
    let (first, keepers_first) = sys::socket::pair().unwrap();
    let (second, keepers_second) = sys::socket::pair().unwrap();
    let keeper = serve(Server::new().unwrap(), vec![keepers_first, keepers_second]);
    sys::socket::send(&first, &[0xff; 100], &[]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (_, restored) = Client::connect(second).await.unwrap();
        assert!(restored.processes.is_empty());
    });
    drop(runtime);
    keeper.join().unwrap();
}

#[test]
fn the_end_of_the_machine_is_asked_for_and_ordered_over_the_socket() {
    let (ours, keepers) = sys::socket::pair().unwrap();
    let mut server = Server::new().unwrap();
    assert!(!server.ask_for_end(true), "there is nobody to ask yet");
    server.attach_supervisor(keepers).unwrap();
    let keeper = std::thread::spawn(move || {
        // The request for what is kept has come: the supervisor listens.
        server.turn().unwrap();
        assert!(server.ask_for_end(true));
        loop {
            if let Turn::Power { restart } = server.turn().unwrap() {
                return restart;
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (client, _) = Client::connect(ours).await.unwrap();
        let restart = client.end_asked().await.unwrap();
        client.power(restart).await.unwrap();
    });
    assert!(keeper.join().unwrap());
}

#[test]
fn the_last_words_of_a_dead_supervisor_are_heard() {
    let (first, keepers_first) = sys::socket::pair().unwrap();
    let (second, keepers_second) = sys::socket::pair().unwrap();
    let mut server = Server::new().unwrap();
    server.attach_supervisor(keepers_first).unwrap();
    let keeper = std::thread::spawn(move || {
        // The request for what is kept; nothing that comes later is taken before the death is known.
        server.turn().unwrap();
        server
    });
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let mut server = runtime().block_on(async {
        let (client, _) = Client::connect(first).await.unwrap();
        let server = keeper.join().unwrap();
        let program = tempfile::tempfile().unwrap();
        client.keep("kept", program.as_fd()).await.unwrap();
        client.replace("next", program.as_fd()).await.unwrap();
        client.serves().await.unwrap();
        server
    });
    assert_eq!(server.bury_supervisor(), Turn::SupervisorGone);
    assert_eq!(
        server.build.as_ref().map(|build| build.name.as_str()),
        Some("next")
    );
    let keeper = serve(server, vec![keepers_second]);
    runtime().block_on(async {
        let (client, restored) = Client::connect(second).await.unwrap();
        assert!(restored.kept.contains_key("kept"));
        drop(client);
    });
    // Also that the machine is to end.
    let (third, keepers_third) = sys::socket::pair().unwrap();
    let mut server = keeper.join().unwrap();
    server.attach_supervisor(keepers_third).unwrap();
    let keeper = std::thread::spawn(move || {
        server.turn().unwrap();
        server
    });
    let mut server = runtime().block_on(async {
        let (client, _) = Client::connect(third).await.unwrap();
        let server = keeper.join().unwrap();
        client.power(true).await.unwrap();
        server
    });
    assert_eq!(server.bury_supervisor(), Turn::Power { restart: true });
}
