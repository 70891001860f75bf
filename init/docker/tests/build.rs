//! `docker build` by the classic builder of the docker command line.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Machine, with_machine};

/// A folder to build from.
fn context(machine: &Machine, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let dir = machine.dir.join(name);
    for (path, content) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

/// What the build says, whether it succeeds or not.
fn build(machine: &Machine, dir: &Path, args: &[&str]) -> (bool, String) {
    let mut command: Command = machine.command(&[&["build"], args, &[dir.to_str().unwrap()]].concat());
    let output = command
        .env("DOCKER_BUILDKIT", "0")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn built(machine: &Machine, dir: &Path, args: &[&str]) -> String {
    let (success, text) = build(machine, dir, args);
    assert!(success, "{text}");
    text
}

const WHOLE: &str = r#"
ARG BASE=busybox
FROM $BASE AS tools
ARG WHO=nobody
ENV GREETING="hello $WHO"
WORKDIR /made
RUN echo "$GREETING" > greeting && echo "by $WHO"
RUN ["sh", "-c", "echo list > list"]

FROM busybox
LABEL purpose=test
ENV TEXT=value
COPY --from=tools /made/ /from/
COPY *.txt sub /data/
COPY --chown=web:34 --chmod=600 sub/inner /own
ADD pack.tar /unpacked/
COPY <<EOF /here
$TEXT "quoted"
EOF
RUN <<EOF
cat /from/greeting > /both
cat /data/a.txt >> /both
EOF
USER web
EXPOSE 80
HEALTHCHECK --interval=5s CMD true
ENTRYPOINT ["cat"]
CMD ["/both"]
"#;

fn whole(machine: &Machine) -> PathBuf {
    let dir = context(
        machine,
        "whole",
        &[
            ("Dockerfile", WHOLE),
            ("a.txt", "file a\n"),
            ("b.txt", "file b\n"),
            ("sub/inner", "inner\n"),
            (".dockerignore", "b.txt\n"),
        ],
    );
    let tar = Command::new("tar")
        .arg("-C")
        .arg(&dir)
        .arg("-cf")
        .arg(dir.join("pack.tar"))
        .arg("sub")
        .status();
    assert!(tar.unwrap().success());
    dir
}

#[test]
fn a_dockerfile_with_all_that_it_may_hold_becomes_an_image() {
    with_machine(|machine| {
        let dir = whole(machine);
        let args = |name| ["-t", name, "--build-arg", "WHO=you", "--label", "more=yes"];
        let told = built(machine, &dir, &args("whole:1"));
        assert!(
            told.contains("by you") && told.contains("Successfully tagged whole"),
            "{told}"
        );
        assert_eq!(machine.out(&["run", "--rm", "whole:1"]), "hello you\nfile a");
        let script = "cat /from/list /here; stat -c '%u:%g %a' /own; ls /data /unpacked/sub; id -un";
        let seen = machine.out(&["run", "--rm", "--entrypoint", "sh", "whole:1", "-c", script]);
        let lines: Vec<&str> = seen.lines().collect();
        assert_eq!(lines[..3], ["list", "value \"quoted\"", "33:34 600"], "{seen}");
        assert!(
            seen.contains("inner") && !seen.contains("b.txt") && lines.contains(&"web"),
            "{seen}"
        );
        let form = "{{.Config.Labels.purpose}} {{.Config.Labels.more}} {{.Config.User}} {{.Config.Healthcheck.Interval}}";
        assert_eq!(
            machine.out(&["inspect", "-f", form, "whole:1"]),
            "test yes web 5s"
        );

        // What was made once is not made again, and is no clutter.
        let again = built(machine, &dir, &args("whole:2"));
        assert!(
            !again.contains("Running in") && again.contains("Using cache"),
            "{again}"
        );
        let id = |name: &str| machine.out(&["inspect", "-f", "{{.Id}}", name]);
        assert_eq!(id("whole:1"), id("whole:2"));
        assert!(!machine.out(&["images"]).contains("<none>"));
        assert!(machine.out(&["images", "-a"]).contains("<none>"));
        // Other content is noticed.
        fs::write(dir.join("a.txt"), "other\n").unwrap();
        let other = built(machine, &dir, &args("whole:3"));
        assert!(
            other.contains("Using cache") && other.contains("Running in"),
            "{other}"
        );
        assert_eq!(machine.out(&["run", "--rm", "whole:3"]), "hello you\nother");
        machine.out(&["rmi", "-f", "whole:1", "whole:2", "whole:3"]);
        machine.out(&["builder", "prune", "-f"]);
        assert!(!machine.out(&["images", "-a"]).contains("<none>"));
        assert_eq!(machine.out(&["ps", "-aq"]), "");
    });
}

#[test]
fn a_target_ends_a_build_and_triggers_run_in_the_next() {
    with_machine(|machine| {
        let file = "FROM busybox AS one\nRUN echo 1 > /one\nONBUILD RUN echo triggered > /two\nFROM one\nRUN false\n";
        let dir = context(machine, "target", &[("Dockerfile", file)]);
        built(machine, &dir, &["--target", "one", "-t", "one:1"]);
        let text = "FROM one:1\nCMD [\"cat\", \"/one\", \"/two\"]\n";
        let next = context(machine, "next", &[("Other", text)]);
        let other = next.join("Other");
        built(machine, &next, &["-f", other.to_str().unwrap(), "-t", "two:1"]);
        assert_eq!(machine.out(&["run", "--rm", "two:1"]), "1\ntriggered");
        machine.out(&["rmi", "two:1", "one:1"]);
    });
}

#[test]
fn what_fails_is_told_and_leaves_no_container() {
    with_machine(|machine| {
        for (file, words) in [
            (
                "FROM busybox\nRUN echo before; exit 3\n",
                "returned a non-zero code: 3",
            ),
            ("FROM busybox\nCOPY nothing /\n", "file does not exist"),
            ("FROM busybox\nCOPY ../../etc/passwd /x\n", "file does not exist"),
            ("FROM busybox\nNONSENSE x\n", "unknown instruction: NONSENSE"),
            ("RUN true\n", "stands before FROM"),
            ("FROM busybox\nRUN --mount=type=cache,target=/x true\n", "--mount"),
        ] {
            let dir = context(machine, "failing", &[("Dockerfile", file)]);
            let (success, told) = build(machine, &dir, &["-t", "never:1"]);
            assert!(!success && told.contains(words), "{file}: {told}");
            assert_eq!(machine.out(&["images", "-q", "never"]), "");
            assert_eq!(machine.out(&["ps", "-aq"]), "");
        }
        let dir = context(
            machine,
            "plain",
            &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")],
        );
        built(machine, &dir, &["-t", "scratched:1"]);
        let layers = machine.out(&["inspect", "-f", "{{len .RootFS.Layers}}", "scratched:1"]);
        assert_eq!(layers, "1");
        machine.out(&["rmi", "scratched:1"]);
    });
}
