//! Read or replace the one field that routes.
