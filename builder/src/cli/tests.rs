use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Result<Command, String> {
    let words = std::iter::once("monobloc").chain(line.split_whitespace());
    Cli::try_parse_from(words)
        .map(|cli| cli.command)
        .map_err(|error| error.to_string())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_examples() {
    for command in Cli::command().get_subcommands() {
        let help = command.clone().render_long_help().to_string();
        let name = command.get_name();
        assert!(
            help.contains("Examples:") && help.contains(&format!("monobloc {name}")),
            "{name}: {help}"
        );
    }
}

#[test]
fn up_means_the_quick_start_unless_told_otherwise() {
    let recipe = |line| match parse(line) {
        Ok(Command::Up(up)) => (up.recipe.display().to_string(), up.efi),
        other => panic!("{other:?}"),
    };
    assert_eq!(recipe("up"), ("quickstart".to_owned(), false));
    assert_eq!(recipe("up --efi my/own.toml"), ("my/own.toml".to_owned(), true));
}

#[test]
fn flags_are_read_short_and_long() {
    for line in [
        "logs -f -n 20 web",
        "logs --follow --tail=20 web",
        "logs web -fn20",
    ] {
        let Ok(Command::Logs(logs)) = parse(line) else {
            panic!("{line}");
        };
        assert!(logs.follow && logs.tail == Some(20) && logs.machine.as_deref() == Some("web"));
    }
    let Ok(Command::Build(build)) = parse("build a.toml -o b.efi") else {
        panic!("build");
    };
    assert_eq!((build.recipe, build.output), ("a.toml".into(), "b.efi".into()));
}

#[test]
fn mistakes_are_refused() {
    for line in [
        "",
        "upp",
        "build",
        "build a.toml",
        "inspect",
        "logs -n many",
        "status --yaml",
        "down one two",
    ] {
        assert!(parse(line).is_err(), "{line:?} was taken");
    }
}

#[test]
fn what_to_type_next_is_what_was_typed_before() {
    for (called, by_cargo, debug, expected) in [
        (
            "target/release/monobloc",
            true,
            false,
            "cargo run --release -- down",
        ),
        ("target/debug/monobloc", true, true, "cargo run -- down"),
        ("./monobloc", false, false, "./monobloc down"),
        ("", false, false, "monobloc down"),
    ] {
        assert_eq!(text::again_as(called, by_cargo, debug, "down"), expected);
    }
}

#[test]
fn recipes_are_found_by_name_and_by_path() {
    let named = pick::recipe("quickstart".as_ref()).unwrap();
    assert!(named.ends_with("images/quickstart.toml") && named.is_absolute());
    assert_eq!(
        pick::recipe("/nowhere/x.toml".as_ref()).unwrap().to_str(),
        Some("/nowhere/x.toml")
    );
    let error = pick::recipe("quikstart".as_ref()).unwrap_err().to_string();
    assert!(
        error.contains("quikstart") && error.contains("quickstart, web"),
        "{error}"
    );
}

#[test]
fn the_first_machines_context_is_just_monobloc() {
    assert_eq!(pick::context("quickstart"), "monobloc");
    assert_eq!(pick::context("web"), "monobloc-web");
}

#[test]
fn sizes_are_spelled_as_people_read_them() {
    for (bytes, spelled) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (4 << 30, "4.0 GiB"),
        (300 << 20, "300 MiB"),
    ] {
        assert_eq!(text::size(bytes), spelled);
    }
}

#[test]
fn a_tables_columns_stand_under_each_other() {
    let table = text::table([("a", "one".to_owned()), ("long", "two".to_owned())]);
    assert_eq!(table, "  a     one\n  long  two\n");
}
