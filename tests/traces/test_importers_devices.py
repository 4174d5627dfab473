"""Importers read a hand-made file of each availability and device format, with every trap in it."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.traces.trace_files import BEHAVE, CAPACITY, DAY_MS, FILES, FLASH, load, sample, write
from traces.availability import AvailabilityTrace, read_availability
from traces.importers import FORMATS, import_files

HOUR_S, DAY_S = 3600.0, 86400.0
TRACES = Path(__file__).parents[2] / "../shared/traces"


def intervals(device: AvailabilityTrace) -> list[tuple[float, float]]:
    return list(zip(device.start_s.tolist(), device.end_s.tolist(), strict=True))


def test_capacity_is_seconds_a_sample_and_one_rate_for_both_directions(tmp_path: Path) -> None:
    (table,) = load(tmp_path, "fedscale-capacity", FILES["fedscale-capacity"])
    assert table.text == (
        "device_id,inference_s_per_sample,downlink_mbps,uplink_mbps,speed\n"
        "432802,0.162,5.6485,5.6485,1\n"
    )


def test_behave_joins_touching_spans_and_keeps_the_models(tmp_path: Path) -> None:
    availability, models = load(tmp_path, "fedscale-behave", FILES["fedscale-behave"])
    device = availability.devices["7"]
    assert intervals(device) == [(0, 20), (90, 110)]
    assert device.period_s == DAY_S
    assert models.name == "mine-devices"
    assert models.text == "device_id,model\n7,SM-J730GM\n"


def test_behave_span_of_no_length_is_none(tmp_path: Path) -> None:
    entry = {"active": [5, 9], "inactive": [5, 10], "finish_time": 100, "model": "X"}
    availability, _ = load(tmp_path, "fedscale-behave", pickle.dumps({1: entry}))
    assert intervals(availability.devices["1"]) == [(9, 10)]


def changed(entry: dict[str, Any], **values: Any) -> bytes:
    return pickle.dumps({3: {**entry, **values}})


WRONG_PICKLES = {
    "empty": ("fedscale-capacity", b"", "byte 0: expected a pickle, found an empty file"),
    "no dict": ("fedscale-capacity", pickle.dumps([1]), "expected a dict of clients, found a list"),
    "no clients": ("fedscale-capacity", pickle.dumps({}), "expected a dict of clients, found a di"),
    "id": ("fedscale-capacity", pickle.dumps({1.5: 1}), "client 1.5: a client's id must be an int"),
    "entry": ("fedscale-capacity", pickle.dumps({5: [1]}), "client 5: expected a dict with comp"),
    "key": (
        "fedscale-capacity",
        pickle.dumps({5: {"computation": 1.0}}),
        "client 5: expected a dict with computation, communication, found a dict of 1 with the keys"
        " 'computation'",
    ),
    "text": (
        "fedscale-capacity",
        changed(CAPACITY[432802], computation="fast"),
        r"client 3: computation must be a number in \(0, 1e\+09\], found 'fast'",
    ),
    "nan": (
        "fedscale-capacity",
        changed(CAPACITY[432802], communication=float("nan")),
        "client 3: communication must be a number .* found nan",
    ),
    "truth": (
        "fedscale-capacity",
        changed(CAPACITY[432802], communication=True),
        "client 3: communication must be a number .* found True",
    ),
    "lengths": ("fedscale-behave", changed(BEHAVE[7], active=[0]), "must be of one length, found"),
    "lists": ("fedscale-behave", changed(BEHAVE[7], active=3), "must be lists, found 3 and a list"),
    "turns": (
        "fedscale-behave",
        changed(BEHAVE[7], active=[0, 10, 100]),
        "client 3: active and inactive must take turns in rising order, found 10 to 100 after 20",
    ),
    "period": ("fedscale-behave", changed(BEHAVE[7], finish_time=50), r"active must .* in \[0,"),
    "model": ("fedscale-behave", changed(BEHAVE[7], model=5), "model must be printable text"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), WRONG_PICKLES.values(), ids=WRONG_PICKLES)
def test_wrong_pickle_is_refused_with_its_client(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=r"mine\.dat.*" + message):
        load(tmp_path, name, content)


def flash(*messages: str, **entry: Any) -> str:
    return json.dumps({"0": {"model": "X", "messages": "\n".join(messages), **entry}})


def test_flash_is_online_while_locked_charging_and_on_wifi(tmp_path: Path) -> None:
    availability, models = load(tmp_path, "flash", json.dumps(FLASH))
    device = availability.devices["0"]
    locked_s = 22 * HOUR_S + 11 * 60 + 41
    assert intervals(device) == [(locked_s, DAY_S + 7 * HOUR_S + 2 * 60 + 12)]
    assert device.period_s == 2 * DAY_S
    assert models.text == "device_id,model\n0,CPH1801\n"
    assert availability.notes == ()


def test_flash_lines_out_of_order_and_repeated_are_sorted(tmp_path: Path) -> None:
    lines = FLASH["0"]["messages"].splitlines()
    (expected, _), (shuffled, _) = (
        load(tmp_path, "flash", flash(*some)) for some in (lines, [*lines[::-1], lines[2]])
    )
    assert shuffled.text == expected.text


def test_flash_messages_may_be_a_list(tmp_path: Path) -> None:
    lines = FLASH["0"]["messages"].splitlines()
    expected, _ = load(tmp_path, "flash", json.dumps(FLASH))
    listed, _ = load(tmp_path, "flash", flash(messages=lines))
    assert listed.text == expected.text


@pytest.mark.parametrize("network", ["2G", "3g", "4G", "5G", "Unknown"])
def test_flash_leaves_wifi_for_any_other_network(tmp_path: Path, network: str) -> None:
    availability, _ = load(tmp_path, "flash", flash(
        "2020-01-29 00:00:00\tscreen_lock", "2020-01-29 00:00:01\twifi",
        "2020-01-29 00:00:02\tbattery_charged_on", f"2020-01-29 00:00:09\t{network}",
        "2020-01-29 00:00:20\t50.0%",
    ))  # fmt: skip
    assert intervals(availability.devices["0"]) == [(2, 9)]


def test_flash_counts_nothing_after_the_last_event(tmp_path: Path) -> None:
    availability, _ = load(tmp_path, "flash", flash(
        "2020-01-29 00:00:00\tscreen_lock", "2020-01-29 00:00:01\twifi",
        "2020-01-29 00:00:02\tbattery_charged_on", "2020-01-29 00:00:20\t50.0%",
    ))  # fmt: skip
    assert intervals(availability.devices["0"]) == [(2, 20)]


def test_flash_state_before_its_first_event_is_not_assumed(tmp_path: Path) -> None:
    availability, _ = load(tmp_path, "flash", flash(
        "2020-01-29 00:00:01\twifi", "2020-01-29 00:00:02\tbattery_charged_on",
        "2020-01-29 00:00:20\tscreen_unlock",
    ))  # fmt: skip
    assert intervals(availability.devices["0"]) == []


def test_flash_events_that_nobody_knows_are_said(tmp_path: Path) -> None:
    availability, _ = load(tmp_path, "flash", flash("2020-01-29 00:00:00\tdoze_on"))
    assert availability.notes == ("events that are not known and were ignored: 'doze_on'",)


WRONG_JSON = {
    "empty": ("", r"mine\.dat, line 1: expected JSON, found its end"),
    "cut": ('{"0": {\n"mess', r"line 2: expected JSON, found '\"mess' \(Unterminated string"),
    "list": ("[1]", "line 1: expected a JSON object, found another value"),
    "no devices": ("{}", "line 1: expected at least one device, found none"),
    "entry": ('{"0": 5}', "device '0': expected an object with messages, found another value"),
    "messages": ('{"0": {"messages": 5}}', "device '0': messages must be a text or a list of"),
    "no messages": ('{"0": {"messages": "\\n"}}', "device '0': expected at least one message"),
    "no tab": (flash("2020-01-29 00:00:00 wifi"), "message 1: expected 'YYYY-MM-DD hh:mm:ss', a t"),
    "date": (flash("x", "2020-13-29 00:00:00\twifi"), "device '0', message 1: expected 'YYYY-.*'x"),
    "year": (flash("0001-01-01 00:00:00\twifi"), "message 1: expected .* found '0001-01-01"),
    "model": (flash("2020-01-29 00:00:00\twifi", model=[]), "device '0': model must be printable"),
    "name": ('{"": {"messages": "2020-01-29 00:00:00\\twifi"}}', "device_id must be printable tex"),
    "deep": ("[" * 100_000, "expected JSON that can be read, found maximum recursion|expected JSO"),
    "digits": ("1" * 10_000, "expected JSON that can be read, found Exceeds the limit"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), WRONG_JSON.values(), ids=WRONG_JSON)
def test_wrong_state_traces_are_refused_with_their_place(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=r"mine\.dat") as error:
        load(tmp_path, "flash", content)
    assert error.match(message)


def test_stunner_sessions_alternate_from_the_first_state(tmp_path: Path) -> None:
    # starts at local midnight: epoch 1402351200 is 22:00 UTC, 00:00 at +2
    line = f"u1 0 1402351200000 2 1000 2500 {DAY_MS - 3500}\n"
    (availability,) = load(tmp_path, "stunner", line)
    assert intervals(availability.devices["u1-1"]) == [(1, 3.5)]
    assert availability.devices["u1-1"].period_s == DAY_S


@pytest.mark.parametrize(("zone", "hour"), [("2", 2), ("0", 0), ("-5", 19), ("5.5", 5.5)])
def test_stunner_hours_are_local(tmp_path: Path, zone: str, hour: float) -> None:
    # 1402358400 is 00:00 UTC of 10 June 2014
    line = f"u1 1 1402358400000 {zone} 3600000 {DAY_MS - 3_600_000}\n"
    (availability,) = load(tmp_path, "stunner", line)
    assert intervals(availability.devices["u1-1"]) == [(hour * HOUR_S, (hour + 1) * HOUR_S)]


def test_stunner_lines_of_one_user_are_devices_of_their_own(tmp_path: Path) -> None:
    line = f"u1 1 1402358400000 2 {DAY_MS}\n"
    (availability,) = load(tmp_path, "stunner", line + line.replace("u1", "u2") + line)
    assert list(availability.devices) == ["u1-1", "u2-1", "u1-2"]
    assert availability.devices["u1-2"].fraction_online == 1


WRONG_LISTS = {
    "empty": ("", "line 1: expected a user and sessions, found an empty file"),
    "cut": (f"u 1 1402358400000 2 1000 {DAY_MS}", "line 1: the sessions must sum to whole days"),
    "short": ("u 1 1402358400000 2", "line 1: expected user, state, start, time zone and at leas"),
    "state": (f"u 2 1402358400000 2 {DAY_MS}", "line 1: the first state must be 0 or 1, found '2'"),
    "start": (f"u 1 yesterday 2 {DAY_MS}", "line 1: start in ms must be a whole number .* 'y"),
    "zone": (f"u 1 1402358400000 99 {DAY_MS}", "line 1: time zone in hours must be a number"),
    "negative": (f"u 1 1402358400000 2 -5 {DAY_MS + 5}", "line 1: a session in ms must be .* '-5'"),
    "long": (f"u 1 1402358400000 2 {DAY_MS * 400}", "line 1: a session in ms must be a whole"),
    "nothing": ("u 1 1402358400000 2 0", "line 1: the sessions must sum to whole days"),
}


@pytest.mark.parametrize(("content", "message"), WRONG_LISTS.values(), ids=WRONG_LISTS)
def test_wrong_session_list_is_refused_with_its_line(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=r"mine\.dat, " + message):
        load(tmp_path, "stunner", content)


def test_benchmark_table_by_name_with_memory_in_bytes(tmp_path: Path) -> None:
    (table,) = load(tmp_path, "ai-benchmark", FILES["ai-benchmark"])
    assert table.text == (
        "device_id,soc,year,memory_bytes,cpu_float_score,ai_score,speed\n"
        "Phone A,Chip 1,2019,8000000000,3744,76206,1.96899\n"
        "Phone B,Chip 2,2018,6000000000,,1200,0.0310053\n"
    )


def test_benchmark_ranking_of_flash_as_json(tmp_path: Path) -> None:
    entry = {
        "Model": "Phone A", "CPU": "Chip 1", "RAM": "8GB", "Year": "2019", "Updated": "9.19",
        "FP32_Score": "716", "QUANT_Score": "", "AI_Score": " 76206 1,6",
    }  # fmt: skip
    other = {**entry, "RAM": "6GB"}
    (table,) = load(tmp_path, "ai-benchmark", json.dumps([entry, other, entry]))
    row, second = table.rows
    assert second[0] == "Phone A #2"
    fields = dict(zip(table.columns, row, strict=True))
    assert fields["device_id"] == "Phone A"
    assert fields["memory_bytes"] == "8000000000"
    assert (fields["ai_score"], fields["nn_fp32_score"]) == ("76206", "716")
    assert fields["nn_int8_score"] == fields["android"] == ""
    assert table.notes[0] == "repeats of a device, left out: 1"


def test_benchmark_scores_of_flash_as_json(tmp_path: Path) -> None:
    (table,) = load(tmp_path, "ai-benchmark", '{"Phone, A": 76206, "Phone B": 100.5}')
    assert table.text == (
        'device_id,ai_score,speed\n"Phone, A",76206,1.99737\nPhone B,100.5,0.00263411\n'
    )


WRONG_TABLES = {
    "empty": ("", "line 1: expected a header with the columns device, found nothing"),
    "no scores": ("device,soc\nA,B\n", "line 1: expected columns that end in _score, found 'devi"),
    "no rows": ("device,ai_score\n", "line 1: expected at least one device, found none"),
    "text": ("device,ai_score\nA,high\n", "line 2: ai_score must be a number .* found 'high'"),
    "no name": ("device,ai_score\n,5\n", "line 2: device_id must be printable text"),
    "cut": ("device,ai_score\nA", "line 2: expected 2 fields"),
    "json score": ('{"A": "high"}', "device 'A': the score must be a number .* found 'high'"),
    "json null": ('{"A": null}', "device 'A': the score must be a number .* found 'None'"),
    "json number": ("[5]", "device 1: expected an object with a Model, found another value"),
    "json field": ('[{"Model": "A", "RAM": 8}]', "device 1: RAM must be a text, found '8'"),
    "json memory": ('[{"Model": "A", "RAM": "much"}]', "device 1: RAM must be a number .*'much'"),
}


@pytest.mark.parametrize(("content", "message"), WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_wrong_device_table_is_refused_with_its_place(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=r"mine\.dat, " + message):
        load(tmp_path, "ai-benchmark", content)


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.gives == "availability"])
def test_import_and_csv_keep_every_interval_of_the_hand_made_file(
    tmp_path: Path, name: str
) -> None:
    availability, *_ = import_files(name, [sample(tmp_path, name)])
    back = read_availability(write(tmp_path, "there.csv", availability.text))
    assert list(back) == list(availability.devices)
    for device, trace in availability.devices.items():
        assert intervals(back[device]) == intervals(trace)
        assert back[device].period_s == trace.period_s


@pytest.mark.skipif(
    not TRACES.is_dir(), reason="the real recordings do not stand beside this checkout"
)
def test_real_benchmark_table_is_read_whole() -> None:
    (table,) = import_files("ai-benchmark", [TRACES / "devices/ai_benchmark_phones.csv"])
    assert len(table.rows) == 309
    assert table.rows[0][0] == "Huawei Mate 30 Pro 5G"
    assert dict(zip(table.columns, table.rows[0], strict=True))["ai_score"] == "76206"
    assert io.StringIO(table.text).readline().startswith("device_id,soc,year,memory_bytes")
