//! No key without a test.

use std::process::Command;

use serde_json::Value;

/// Where each key is tried: a test function of this folder or of the one named before `::`.
const TRIED: &[(&str, &str)] = &[
    ("gateway.listen", "reload::what_cannot_change_is_refused_by_name_and_nothing_changes"),
    ("gateway.allowed_hosts", "edge::only_known_hosts_are_served"),
    ("gateway.allowed_origins", "edge::browsers_come_from_allowed_origins_only"),
    ("gateway.max_body", "edge::bodies_are_bounded"),
    ("gateway.header_timeout", "edge::slow_headers_and_bodies_run_out_of_time"),
    ("gateway.idle_timeout", "edge::a_connection_is_kept_until_it_was_idle_for_long"),
    ("gateway.body_timeout", "edge::slow_headers_and_bodies_run_out_of_time"),
    ("gateway.max_connections", "edge::one_connection_more_than_may_be_is_closed"),
    ("gateway.max_sessions", "edge::the_longest_idle_session_makes_room"),
    ("gateway.session_idle", "edge::idle_sessions_end"),
    ("gateway.max_calls", "max_calls_bounds_what_is_in_flight"),
    (
        "gateway.max_memory",
        "edge::beyond_the_memory_that_may_be_used_new_work_is_refused_until_there_is_room",
    ),
    ("gateway.max_starting", "children::so_many_children_start_at_once_and_no_more"),
    ("gateway.max_streams", "edge::open_streams_show_signs_of_life_and_are_bounded"),
    ("gateway.keep_alive", "edge::open_streams_show_signs_of_life_and_are_bounded"),
    ("gateway.page_size", "edge::lists_come_in_pages"),
    ("gateway.instructions", "instructions_are_handed_on_whole_cut_or_not_at_all"),
    ("gateway.instructions_max", "instructions_are_handed_on_whole_cut_or_not_at_all"),
    ("gateway.builtin", "edge::a_session_hears_of_changed_lists"),
    ("gateway.list_changed_debounce", "list_changed_waits_for_quiet"),
    ("gateway.drain_notice", "drain_notice_is_how_long_calls_are_still_taken"),
    ("gateway.drain_timeout", "drain_timeout_is_how_long_calls_may_take_to_finish"),
    ("gateway.rollback_after", "plan::what_does_not_start_is_given_up_after_rollback_after"),
    ("gateway.sealing_key", "bridge::gateways_with_the_same_sealing_key_stand_for_one_another"),
    ("gateway.state_dir", "state_and_cache_are_where_they_should_be"),
    ("gateway.cache_dir", "state_and_cache_are_where_they_should_be"),
    ("admin.listen", "admin_can_be_off"),
    ("log.level", "reload::the_log_level_changes_while_running"),
    ("log.format", "log_format_is_text_or_json"),
    ("trace.otlp_endpoint", "traces_go_to_the_endpoint_sampled_and_named"),
    ("trace.sample", "traces_go_to_the_endpoint_sampled_and_named"),
    ("trace.service_name", "traces_go_to_the_endpoint_sampled_and_named"),
    ("upstreams.*.prefix", "a_prefix_can_be_left_out_once"),
    ("upstreams.*.url", "edge::discovery_says_what_there_is"),
    ("upstreams.*.urls", "replicas::what_reached_nobody_goes_to_another"),
    ("upstreams.*.ejection.consecutive", "replicas_are_left_out_as_long_as_they_should"),
    ("upstreams.*.ejection.first", "replicas_are_left_out_as_long_as_they_should"),
    ("upstreams.*.ejection.longest", "replicas_are_left_out_as_long_as_they_should"),
    ("upstreams.*.transport", "upwires::the_transport_decides_what_is_tried"),
    ("upstreams.*.command", "arguments_environment_and_folder_reach_the_child"),
    ("upstreams.*.package", "a_package_is_installed_and_its_program_chosen"),
    ("upstreams.*.bin", "a_package_is_installed_and_its_program_chosen"),
    ("upstreams.*.args", "arguments_environment_and_folder_reach_the_child"),
    ("upstreams.*.env.*", "arguments_environment_and_folder_reach_the_child"),
    ("upstreams.*.inherit_env", "arguments_environment_and_folder_reach_the_child"),
    ("upstreams.*.cwd", "arguments_environment_and_folder_reach_the_child"),
    ("upstreams.*.stderr_per_minute", "stderr_is_relayed_within_its_bound"),
    ("upstreams.*.restart_backoff", "restarts_pause_as_long_as_they_should"),
    ("upstreams.*.restart_backoff_max", "restarts_pause_as_long_as_they_should"),
    (
        "upstreams.*.memory_max",
        "children::a_child_over_memory_max_is_started_again_and_no_write_is_repeated",
    ),
    ("upstreams.*.idle_stop", "children::a_child_that_nobody_uses_rests_until_the_next_call"),
    ("upstreams.*.headers.*", "headers_and_bearer_are_sent"),
    ("upstreams.*.bearer", "headers_and_bearer_are_sent"),
    ("upstreams.*.pool_idle", "idle_connections_are_kept_for_as_long_as_they_may"),
    ("upstreams.*.dial_timeout", "dialling_gives_up"),
    ("upstreams.*.call_timeout", "progress_extends_a_call_and_not_for_ever"),
    ("upstreams.*.max_call_timeout", "progress_extends_a_call_and_not_for_ever"),
    ("upstreams.*.hedge_after", "slow_reads_are_sent_twice_as_soon_as_they_should"),
    ("upstreams.*.enabled", "a_disabled_upstream_is_not_there"),
    ("upstreams.*.state", "draining_takes_no_new_calls_and_maintenance_none_that_has_not_left"),
    ("upstreams.*.message", "the_message_reaches_agents_and_operators"),
    ("upstreams.*.until", "until_ends_it_and_is_told"),
    ("upstreams.*.era", "the_era_decides_what_is_asked_first"),
    ("upstreams.*.isolation", "bridge::a_shared_child_may_not_ask_and_one_of_a_consumer_may"),
    ("upstreams.*.instructions", "instructions_are_handed_on_whole_cut_or_not_at_all"),
    ("upstreams.*.allow", "patterns_decide_what_exists_for_us"),
    ("upstreams.*.deny", "patterns_decide_what_exists_for_us"),
    ("upstreams.*.connect_timeout", "connect_and_list_timeouts_end_a_wait"),
    ("upstreams.*.list_timeout", "connect_and_list_timeouts_end_a_wait"),
    ("upstreams.*.refresh", "lists_are_fetched_again"),
    ("upstreams.*.max_items", "items_and_pages_are_bounded"),
    ("upstreams.*.max_pages", "items_and_pages_are_bounded"),
    ("upstreams.*.max_message", "faults::what_is_too_large_is_refused_and_costs_nobody_else"),
    ("upstreams.*.concurrency.max", "places_and_the_line_before_them"),
    ("upstreams.*.concurrency.queue", "places_and_the_line_before_them"),
    ("upstreams.*.rate.per_second", "tokens_are_spent_saved_and_waited_for"),
    ("upstreams.*.rate.burst", "tokens_are_spent_saved_and_waited_for"),
    ("upstreams.*.rate.max_wait", "tokens_are_spent_saved_and_waited_for"),
    ("upstreams.*.breaker.enabled", "each_breaker_key_opens_or_keeps_closed_through_the_file"),
    ("upstreams.*.breaker.window", "failures_are_forgotten_after_the_window"),
    ("upstreams.*.breaker.min_calls", "each_breaker_key_opens_or_keeps_closed_through_the_file"),
    (
        "upstreams.*.breaker.failure_share",
        "each_breaker_key_opens_or_keeps_closed_through_the_file",
    ),
    ("upstreams.*.breaker.slow_call", "each_breaker_key_opens_or_keeps_closed_through_the_file"),
    ("upstreams.*.breaker.slow_share", "each_breaker_key_opens_or_keeps_closed_through_the_file"),
    ("upstreams.*.breaker.consecutive", "each_breaker_key_opens_or_keeps_closed_through_the_file"),
    ("upstreams.*.breaker.open_for", "an_open_breaker_tries_again_and_closes_after_its_probes"),
    ("upstreams.*.breaker.probes", "an_open_breaker_tries_again_and_closes_after_its_probes"),
    ("upstreams.*.retry.attempts", "reads_are_tried_again_within_their_budget"),
    ("upstreams.*.retry.backoff", "retries_pause_as_long_as_they_should"),
    ("upstreams.*.retry.backoff_max", "retries_pause_as_long_as_they_should"),
    ("upstreams.*.retry.budget", "reads_are_tried_again_within_their_budget"),
    ("upstreams.*.throttle.texts", "throttling_is_understood_and_pauses"),
    ("upstreams.*.throttle.pause", "throttling_is_understood_and_pauses"),
    ("upstreams.*.throttle.pause_max", "throttling_is_understood_and_pauses"),
    ("upstreams.*.idempotency.argument", "calls_carry_keys_where_they_should"),
    ("upstreams.*.idempotency.header", "calls_carry_keys_where_they_should"),
    ("upstreams.*.tools.*.idempotency.argument", "calls_carry_keys_where_they_should"),
    ("upstreams.*.tools.*.idempotency.header", "calls_carry_keys_where_they_should"),
    ("upstreams.*.tools.*.call_timeout", "tools_have_rules_of_their_own"),
    ("upstreams.*.tools.*.hedge_after", "slow_reads_are_sent_twice_as_soon_as_they_should"),
    ("upstreams.*.tools.*.read_only", "tools_have_rules_of_their_own"),
    ("upstreams.*.tools.*.rate.per_second", "tools_have_rules_of_their_own"),
    ("upstreams.*.tools.*.rate.burst", "tools_have_rules_of_their_own"),
    ("upstreams.*.tools.*.rate.max_wait", "tools_have_rules_of_their_own"),
    ("views.*.upstreams", "views_and_quotas_are_each_teams_own"),
    ("views.*.allow", "views_and_quotas_are_each_teams_own"),
    ("views.*.deny", "views_and_quotas_are_each_teams_own"),
    ("consumers.*.key", "views_and_quotas_are_each_teams_own"),
    ("consumers.*.keys", "views_and_quotas_are_each_teams_own"),
    ("consumers.*.view", "views_and_quotas_are_each_teams_own"),
    ("consumers.*.rate.per_second", "views_and_quotas_are_each_teams_own"),
    ("consumers.*.rate.burst", "views_and_quotas_are_each_teams_own"),
];

fn keys(node: &Value, path: &str, out: &mut Vec<String>) {
    let inner = |v: &Value| v["properties"].is_object() || v["additionalProperties"].is_object();
    let here = |k: &str| if path.is_empty() { k.to_owned() } else { format!("{path}.{k}") };
    let named = node["properties"].as_object().into_iter().flatten();
    let named = named.map(|(k, v)| (k.as_str(), v));
    let any = &node["additionalProperties"];
    let any = any.is_object().then_some(("*", any));
    for (k, v) in named.chain(any) {
        if inner(v) {
            keys(v, &here(k), out);
        } else {
            out.push(here(k));
        }
    }
}

#[test]
fn every_key_is_tried() {
    let output = Command::new(env!("CARGO_BIN_EXE_weir")).arg("schema").output().unwrap();
    let mut known = Vec::new();
    keys(&serde_json::from_slice(&output.stdout).unwrap(), "", &mut known);
    assert!(known.len() > 80, "the schema could not be read: {known:?}");
    let tried: Vec<_> = TRIED.iter().map(|(key, _)| (*key).to_owned()).collect();
    let missing: Vec<_> = known.iter().filter(|k| !tried.contains(k)).collect();
    let gone: Vec<_> = tried.iter().filter(|k| !known.contains(k)).collect();
    assert!(missing.is_empty() && gone.is_empty(), "untried: {missing:?}; unknown: {gone:?}");
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    for (key, place) in TRIED {
        let (folder, name) = place.split_once("::").unwrap_or(("keys", place));
        let single = std::fs::read_to_string(format!("{tests}/{folder}.rs")).unwrap_or_default();
        let many = std::fs::read_dir(format!("{tests}/{folder}")).into_iter().flatten();
        let many = many.map(|e| std::fs::read_to_string(e.unwrap().path()).unwrap());
        let all = many.collect::<String>() + &single;
        assert!(all.contains(&format!("async fn {name}(")), "{key}: no test {place}");
    }
}
