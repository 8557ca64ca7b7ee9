//! What the vm's owner set, from `drover.*` words of the kernel command line.

use std::net::SocketAddr;

const WORKING_SET_MIB_DEFAULT: u32 = 16;
/// The working set has to fit the guest; this bounds a slip of the pen.
const WORKING_SET_MIB_MAX: u32 = 16_384;
pub const DIRTY_MIB_S_MAX: u32 = 4_096;

/// What the guest serves to its clients beside `/stats`, on ports of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Nothing but the probes, which all of them answer.
    Idle,
    Web,
    Game,
    Database,
    /// As idle; what it writes is set by `dirty_mib_s`.
    Diabolical,
}

impl Workload {
    fn parse(word: &str) -> Result<Self, String> {
        Ok(match word {
            "idle" => Self::Idle,
            "web" => Self::Web,
            "game" => Self::Game,
            "database" => Self::Database,
            "diabolical" => Self::Diabolical,
            _ => return Err(format!("drover.workload={word}: write idle, web, game, database or diabolical")),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub name: String,
    /// Without one only `/stats` is served.
    pub workload: Option<Workload>,
    /// Where ticks go; none are sent without it.
    pub tick: Option<SocketAddr>,
    pub working_set_mib: u32,
    /// Share of each vcpu to keep busy, 0 to 100.
    pub cpu_percent: u32,
    pub dirty_mib_s: u32,
    /// Where HTTP is answered, if not on port 80 of every address.
    pub listen: Option<String>,
}

impl Settings {
    /// Words that do not begin with `drover.` belong to others; unknown `drover.` words are refused.
    pub fn from_cmdline(cmdline: &str) -> Result<Self, String> {
        let mut settings = Self {
            name: "guest".to_owned(),
            workload: None,
            tick: None,
            working_set_mib: WORKING_SET_MIB_DEFAULT,
            cpu_percent: 0,
            dirty_mib_s: 0,
            listen: None,
        };
        for word in cmdline.split_ascii_whitespace() {
            let Some((key, value)) = word.strip_prefix("drover.").and_then(|rest| rest.split_once('=')) else {
                continue;
            };
            // A vm's guest arguments are named with hyphens, by drover's rule for names.
            match key.replace('-', "_").as_str() {
                "name" => settings.name = value.to_owned(),
                // The address is the init script's business.
                "address" => {}
                "workload" => settings.workload = Some(Workload::parse(value)?),
                "tick" => {
                    let sink = value.parse().map_err(|_| format!("drover.tick={value}: write address:port"))?;
                    settings.tick = Some(sink);
                }
                "ws_mib" => settings.working_set_mib = number("ws_mib", value, 1, WORKING_SET_MIB_MAX)?,
                "cpu" => settings.cpu_percent = number("cpu", value, 0, 100)?,
                "dirty_mib_s" => settings.dirty_mib_s = number("dirty_mib_s", value, 0, DIRTY_MIB_S_MAX)?,
                "listen" => settings.listen = Some(value.to_owned()),
                other => return Err(format!("drover.{other} is not known to guest-load")),
            }
        }
        Ok(settings)
    }
}

/// A whole number within its bounds, or what to write instead.
pub fn number(key: &str, value: &str, min: u32, max: u32) -> Result<u32, String> {
    value
        .parse()
        .ok()
        .filter(|n| (min..=max).contains(n))
        .ok_or_else(|| format!("{key}={value}: write a whole number from {min} to {max}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_from_drover_words_and_others_are_left_alone() {
        let settings = Settings::from_cmdline(
            "console=ttyS0 quiet drover.name=web-1 drover.address=10.78.0.11/24 \
             drover.tick=10.78.0.1:9000 drover.cpu=37 drover.ws-mib=8 drover.dirty_mib_s=2\n",
        )
        .unwrap();
        assert_eq!(
            settings,
            Settings {
                name: "web-1".into(),
                workload: None,
                tick: Some("10.78.0.1:9000".parse().unwrap()),
                working_set_mib: 8,
                cpu_percent: 37,
                dirty_mib_s: 2,
                listen: None,
            }
        );
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let settings = Settings::from_cmdline("quiet").unwrap();
        assert_eq!((settings.working_set_mib, settings.cpu_percent, settings.dirty_mib_s), (16, 0, 0));
        assert_eq!((settings.tick, settings.workload), (None, None));
        let settings = Settings::from_cmdline("drover.workload=database").unwrap();
        assert_eq!(settings.workload, Some(Workload::Database));
    }

    #[test]
    fn a_bad_value_names_its_key_and_the_range() {
        for (cmdline, says) in [
            ("drover.cpu=101", "cpu=101: write a whole number from 0 to 100"),
            ("drover.ws_mib=0", "ws_mib=0"),
            ("drover.tick=nowhere", "drover.tick=nowhere: write address:port"),
            ("drover.workload=mail", "write idle, web, game, database or diabolical"),
            ("drover.dirty=5", "drover.dirty is not known"),
        ] {
            let error = Settings::from_cmdline(cmdline).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
