use super::*;

fn mistake(text: &str) -> String {
    parse_projected(text).1.join("; ")
}

#[test]
fn projected_takes_all_its_keys() {
    let spec = parse_projected("name=a,path=/d,uid=5,gid=6,mode=0440,max-size=1M").0.unwrap();
    assert_eq!(spec.exposure, Exposure::Name("a".to_owned()));
    assert_eq!(spec.volume.path, PathBuf::from("/d"));
    assert_eq!(spec.volume.max_size_bytes, 1 << 20);
    assert_eq!((spec.volume.ownership.uid, spec.volume.ownership.gid), (Some(5), Some(6)));
    assert_eq!(spec.volume.ownership.mode, Some(0o440));
}

#[test]
fn direct_boot_shows_root_as_the_owner_and_the_files_own_mode() {
    let ownership = parse_projected("tag=t,path=/d").0.unwrap().volume.ownership;
    assert_eq!((ownership.uid, ownership.gid, ownership.mode), (Some(0), Some(0), None));
}

#[test]
fn every_mistake_of_one_value_is_named() {
    let text = mistake("tag=t,name=n,colour=red,uid=x,mode=9,max-size=5,uid=2");
    for part in [
        "either tag=NAME or name=NAME",
        "unknown key colour=",
        "uid=x",
        "mode=9",
        "max-size=5",
        "uid= is given twice",
        "path=DIR is missing",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let (spec, mistakes) = parse_projected("tag=t,path=/d,colour=red");
    assert_eq!(
        (spec.unwrap().volume.path, mistakes.len()),
        (PathBuf::from("/d"), 1),
        "the rest is checked, too"
    );
    assert!(mistake("").contains("no key=value"));
    assert!(mistake("tag=t,path=").contains("path= is empty"));
}

#[test]
fn serial_and_reboot_know_their_words() {
    assert_eq!(parse_serial("file=/x"), Ok(SerialSpec::File("/x".into())));
    assert!(parse_serial("file=").is_err() && parse_serial("tty").is_err());
    assert_eq!(parse_on_reboot("reset"), Ok(OnReboot::Reset));
    assert!(parse_on_reboot("").is_err());
    assert!(parse_grace("-1").is_err() && parse_grace("9999999999").is_err());
    assert!(parse_cpus("1000").is_err() && parse_cpus("-1").is_err());
}
