//! The states that a machine can be brought to.

use crate::system::error::Error;

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Without power.
    PowerDown,
    /// With power, doing nothing.
    Halt,
    /// With a new start.
    Reboot,
}

impl End {
    /// The mode of guest-shutdown.
    pub fn parse(mode: Option<&str>) -> Result<Self, Error> {
        match mode {
            None | Some("powerdown") => Ok(Self::PowerDown),
            Some("halt") => Ok(Self::Halt),
            Some("reboot") => Ok(Self::Reboot),
            // The bracket is missing in the original's text too.
            Some(_) => Err(Error::new("mode is invalid (valid values are: halt|powerdown|reboot")),
        }
    }
}

/// Where the machine's memory is while it sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sleep {
    /// On the disk, without power.
    Disk,
    /// Where it is.
    Ram,
    /// In both places.
    Hybrid,
}

#[cfg(test)]
mod tests {
    use super::End;

    #[test]
    fn a_mode_that_is_none_is_refused_in_the_originals_words() {
        assert_eq!(End::parse(None).unwrap(), End::PowerDown);
        assert_eq!(End::parse(Some("powerdown")).unwrap(), End::PowerDown);
        assert_eq!(End::parse(Some("halt")).unwrap(), End::Halt);
        assert_eq!(End::parse(Some("reboot")).unwrap(), End::Reboot);
        for mode in ["", "Halt", "halt ", "poweroff"] {
            let error = End::parse(Some(mode)).unwrap_err();
            assert_eq!(error.desc, "mode is invalid (valid values are: halt|powerdown|reboot");
        }
    }
}
