//! Who asks: credentials of the client, and the challenges of a registry (RFC 9110, section 11, and the
//! distribution specification's token authentication).

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::RegistryError;

/// What a client gave to be let in with.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
    /// A refresh token, in the place of a password.
    pub(crate) identity_token: String,
    /// A finished bearer token.
    pub(crate) registry_token: String,
}

/// Docker's JSON, in the header `X-Registry-Auth` and the body of `POST /auth`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthConfig {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// Clients differ in whether they pad.
pub(crate) const BASE64_URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Credentials {
    /// Reads `X-Registry-Auth`; an empty header, `{}` or `null` mean none.
    pub(crate) fn from_header(header: Option<&str>) -> Result<Option<Self>, RegistryError> {
        let Some(header) = header.map(str::trim).filter(|header| !header.is_empty()) else {
            return Ok(None);
        };
        // Some clients send the ordinary alphabet.
        let header = header.replace('+', "-").replace('/', "_");
        let json = BASE64_URL
            .decode(header)
            .map_err(|error| RegistryError::Credentials(error.to_string()))?;
        Self::from_json(&json)
    }

    /// Reads Docker's `AuthConfig`.
    pub(crate) fn from_json(json: &[u8]) -> Result<Option<Self>, RegistryError> {
        let read: Option<AuthConfig> =
            serde_json::from_slice(json).map_err(|error| RegistryError::Credentials(error.to_string()))?;
        let read = read.unwrap_or_default();
        let mut credentials = Self {
            username: read.username.unwrap_or_default(),
            password: read.password.unwrap_or_default(),
            identity_token: read.identitytoken.unwrap_or_default(),
            registry_token: read.registrytoken.unwrap_or_default(),
        };
        if credentials.username.is_empty()
            && let Some(auth) = read.auth.filter(|auth| !auth.is_empty())
        {
            let decoded = BASE64_URL
                .decode(auth.replace('+', "-").replace('/', "_"))
                .map_err(|error| RegistryError::Credentials(error.to_string()))?;
            let text = String::from_utf8_lossy(&decoded);
            if let Some((username, password)) = text.split_once(':') {
                credentials.username = username.to_owned();
                credentials.password = password.to_owned();
            }
        }
        Ok(Some(credentials).filter(|credentials| *credentials != Self::default()))
    }
}

/// How a registry wants to be convinced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads one `WWW-Authenticate` header.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (key, value) in parameters(rest) {
            match key.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        Some(Self::Bearer {
            realm: realm?,
            service,
            scope,
        })
    }
}

/// `key=value` and `key="value"`, separated by commas; a backslash takes the next character as it is.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while let Some((key, after)) = rest.split_once('=') {
        let (value, end) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (
                    after.get(..end).unwrap_or_default().trim().to_owned(),
                    after.get(end..).unwrap_or_default(),
                )
            }
        };
        found.push((key.trim().to_owned(), value));
        rest = end.trim_start_matches([' ', ',']);
    }
    found
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, text.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_with_quotes_commas_and_spaces() {
        let header = r#"Bearer realm="https://auth.example/token",service="registry, \"the\" one", scope="repository:a/b:pull,push""#;
        assert_eq!(
            Challenge::parse(header),
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".to_owned(),
                service: Some("registry, \"the\" one".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned()),
            })
        );
        assert_eq!(Challenge::parse("basic realm=x"), Some(Challenge::Basic));
        for none in ["Bearer service=x", "Negotiate", ""] {
            assert_eq!(Challenge::parse(none), None, "{none}");
        }
    }

    #[test]
    fn credentials_are_read_in_the_forms_that_clients_send() {
        let encode = |json: &str| base64::engine::general_purpose::URL_SAFE.encode(json);
        let read = |text: &str| Credentials::from_header(Some(text)).unwrap();
        for none in ["", &encode("{}"), &encode("null"), &encode(r#"{"username":""}"#)] {
            assert!(read(none).is_none(), "{none}");
        }
        let given = read(&encode(r#"{"username":"anna","password":"p:w"}"#)).unwrap();
        assert_eq!(
            (given.username.as_str(), given.password.as_str()),
            ("anna", "p:w")
        );
        // "auth" is `anna:p:w`.
        let given = read(&encode(r#"{"auth":"YW5uYTpwOnc="}"#)).unwrap();
        assert_eq!(
            (given.username.as_str(), given.password.as_str()),
            ("anna", "p:w")
        );
        for bad in ["%%%", &encode("[1]"), &encode(r#"{"username":7}"#)] {
            assert!(Credentials::from_header(Some(bad)).is_err(), "{bad}");
        }
    }
}
