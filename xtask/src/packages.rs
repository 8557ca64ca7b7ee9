//! What Debian's package tools say, read from their output.

/// A package that drover needs to be built, shown or tested.
pub struct Needed {
    pub package: &'static str,
    pub because: &'static str,
}

pub const NEEDED: [Needed; 8] = [
    Needed { package: "qemu-system-x86", because: "runs the vms" },
    Needed { package: "qemu-utils", because: "makes their disks" },
    Needed { package: "linux-image-cloud-amd64", because: "the vms' kernel" },
    Needed { package: "busybox-static", because: "the vms' user space" },
    Needed { package: "iproute2", because: "makes the hosts' network namespaces" },
    Needed { package: "nftables", because: "guards the vms' networks" },
    Needed { package: "gcc", because: "links the programs" },
    Needed { package: "libc6-dev", because: "links the programs, and the vms' program statically" },
];

/// One line of `dpkg-query -W -f '${binary:Package}\t${source:Package}\t${Version}\t${db:Status-Status}\n'`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub package: String,
    pub source: String,
    pub version: String,
}

pub const QUERY_FORMAT: &str = "${binary:Package}\t${source:Package}\t${Version}\t${db:Status-Status}\n";

/// The packages that are there; one that was removed and left its configuration is not.
pub fn installed(dpkg_query: &str) -> Vec<Installed> {
    dpkg_query
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let (package, source, version) = (fields.next()?, fields.next()?, fields.next()?);
            // A foreign architecture is told by a suffix.
            let package = package.split(':').next().unwrap_or(package);
            (fields.next() == Some("installed")).then(|| Installed {
                package: package.to_owned(),
                source: source.to_owned(),
                version: version.to_owned(),
            })
        })
        .collect()
}

/// The version that apt would install, from `apt-cache policy PACKAGE`.
pub fn candidate(policy: &str) -> Option<&str> {
    policy
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("Candidate:"))
        .map(str::trim)
        .filter(|version| *version != "(none)")
}

/// The version of this package that was built from the same source as `like`, from `apt-cache madison PACKAGE`.
/// Packages rebuilt on their own differ in a `+b` number.
pub fn version_like<'a>(madison: &'a str, like: &str) -> Option<&'a str> {
    madison
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        .find(|version| without_rebuild(version) == without_rebuild(like))
}

fn without_rebuild(version: &str) -> &str {
    match version.rsplit_once("+b") {
        Some((base, number)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => base,
        _ => version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_package_is_not_installed() {
        let said = "cpio\tcpio\t2.13\tinstalled\ngcc:amd64\tgcc-defaults\t12\tinstalled\nqemu-utils\tqemu\t1:7.2\tconfig-files\n";
        let packages: Vec<_> = installed(said).into_iter().map(|p| p.package).collect();
        assert_eq!(packages, ["cpio", "gcc"]);
    }

    #[test]
    fn the_candidate_is_read_from_policy() {
        let said = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7+deb12u18\n  Version table:\n";
        assert_eq!(candidate(said), Some("1:7.2+dfsg-7+deb12u18"));
        assert_eq!(candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate(""), None);
    }

    #[test]
    fn versions_of_one_source_match_whatever_their_rebuild_number() {
        let said = "\
 qemu-system-data | 1:10.0.2+ds-2~bpo12+1 | http://deb.debian.org/debian bookworm-backports/main amd64 Packages
 qemu-system-data | 1:7.2+dfsg-7+deb12u18 | http://deb.debian.org/debian bookworm/main amd64 Packages
";
        assert_eq!(version_like(said, "1:7.2+dfsg-7+deb12u18+b3"), Some("1:7.2+dfsg-7+deb12u18"));
        assert_eq!(version_like(said, "1:7.2+dfsg-7+deb12u15"), None);
        assert_eq!(without_rebuild("1:10.0.2+ds-2~bpo12+1"), "1:10.0.2+ds-2~bpo12+1");
    }
}
