"""``python -m experiments.render``: films of a trained agent, and what they need."""

import base64
import json
import re
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import tiny

from experiments import evaluate, render
from pomcp_jax import acting, agent, checkpoint, controller, envs
from pomcp_jax import config as config_lib
from pomcp_jax.envs import Scene
from pomcp_jax.rendering import episodes, film, formats, frames, gl, overlay, viewer
from pomcp_jax.rendering.film import Picture, Take

# Eleven decisions an episode, which the host engine compiles in a second.
CONFIG = config_lib.replace(
    tiny.run(train__seed=3, train__num_seeds=2),
    {"env.task": "pendulum-swingup", "env.backend": "host", "env.action_repeat": 95},
)
DECISIONS = 11
TAKE = Take(episodes=2, agent=1, imagine=True, select="argmax", picture=Picture(96, 64))


def saved(folder, config, name=None):
    """Two untrained seeds of a configuration in a checkpoint; its task may have another name."""
    env = envs.make(config.env.task, config.env.action_repeat, config.env.backend)
    spec = acting.build(config.agent, env.observation_size, env.action_size)
    keys = jax.random.split(jax.random.key(0), 2)
    state = jax.vmap(lambda key: agent.init(key, config.agent, spec))(keys)
    config = config_lib.replace(config, {"env.task": name or config.env.task})
    checkpoint.save(folder / "checkpoints", 10, state, config, spec)
    return folder, env


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("run"), CONFIG)


@pytest.fixture(scope="module")
def film_of(run):
    """Two recorded episodes of the second seed, with predictions, and their npz file."""
    folder, env = run
    out = folder / "states.npz"
    recordings = film.render(controller.load(folder), out, env=env, take=TAKE)
    return recordings, env, dict(np.load(out))


@pytest.fixture(scope="module")
def library():
    try:
        return gl.choose()
    except RuntimeError as error:
        pytest.skip(str(error))


def write(film_of, path, library, take=TAKE):
    recordings, env, _ = film_of
    film.write(path, recordings, env, take, library, lambda text: None)


# the recording


def test_the_episodes_are_those_of_an_evaluation(run, film_of):
    agents = controller.load(run[0])
    played = evaluate.play(agents, evaluate.Request(2, "planner", "argmax", "host", TAKE.seed))
    returns = [recording.returns()[-1] for recording in film_of[0]]
    np.testing.assert_allclose(played.returns[1], returns, rtol=1e-4, atol=1e-4)
    assert played.lengths[1].tolist() == [len(recording.reward) for recording in film_of[0]]


def test_states_of_all_episodes_are_in_the_npz(film_of):
    _, env, file = film_of
    rows = 2 * (DECISIONS + 1)
    assert file["qpos"].shape == (rows, 1) and file["observation"].shape == (rows, 3)
    assert file["episode"].tolist() == [1] * (rows // 2) + [2] * (rows // 2)
    np.testing.assert_allclose(file["time"][:3], [0.0, 95 * 0.02, 2 * 95 * 0.02], rtol=1e-6)
    # Observations are the cosine and the sine of the only joint, and its velocity.
    np.testing.assert_allclose(file["observation"][:, 0], np.cos(file["qpos"][:, 0]), atol=1e-5)
    np.testing.assert_allclose(file["observation"][:, 2], file["qvel"][:, 0], atol=1e-5)
    last = np.diff(file["episode"], append=3) > 0
    assert (np.isnan(file["reward"]) == last).all()
    assert (np.isnan(file["action"]).all(axis=1) == last).all()
    total = np.nansum(file["reward"][: rows // 2])
    np.testing.assert_allclose(file["return"][rows // 2 - 1], total, rtol=1e-6)


def test_predictions_belong_to_the_executed_plan(film_of):
    recording = film_of[0][0]
    mppi = CONFIG.agent.mppi
    predictions = recording.predictions
    assert predictions.rewards.shape == (DECISIONS, mppi.num_elites, mppi.horizon)
    np.testing.assert_allclose(predictions.weights.sum(axis=1), 1.0, rtol=1e-5)
    # argmax: the chosen elite is the heaviest.
    assert (predictions.chosen == predictions.weights.argmax(axis=1)).all()


def test_a_broken_episode_ends_before_its_last_step():
    # The ball is at 1.0, 0.95, 0.9 and then broken.
    env = own_task(observe=lambda x: jnp.where(x[2] > 0.88, x[:3], jnp.nan))
    spec = acting.build(CONFIG.agent, env.observation_size, env.action_size)
    state = jax.vmap(lambda key: agent.init(key, CONFIG.agent, spec))(
        jax.random.split(jax.random.key(0), 1)
    )
    agents = checkpoint.Restored(state=state, config=CONFIG, spec=spec, decisions=10)
    recording = episodes.record(agents, env, actor="policy")[0]
    assert not recording.valid and len(recording.reward) == 2
    np.testing.assert_allclose(recording.poses["qpos"][:, 2], [1.0, 0.95, 0.9], rtol=1e-6)


# drawing


@pytest.mark.parametrize("suffix", formats.DRAWN)
def test_films_have_captions_and_panels(film_of, library, tmp_path, suffix):
    path = tmp_path / f"film{suffix}"
    write(film_of, path, library)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    images = decoded(path, tmp_path)
    width = 96 + overlay.panel_width(64)
    if suffix == ".png":
        assert images[0].shape == (2 * 64, formats.STRIP * width, 3)
        return
    assert len(images) == 2 * (DECISIONS + 1) and images[0].shape == (64, width, 3)
    # The pendulum moves, and the panel's lines do too.
    assert np.abs(images[0][30:, :96] - images[4][30:, :96]).max() > 40
    assert np.abs(images[0][:, 96:] - images[4][:, 96:]).max() > 40


def decoded(path, folder):
    """Frames of a file, as int arrays."""
    from PIL import Image

    if path.suffix == ".mp4":
        command = [formats.encoder(), "-loglevel", "error", "-i", str(path)]
        subprocess.run([*command, str(folder / "%03d.png")], check=True)
        return [np.array(Image.open(file)).astype(int) for file in sorted(folder.glob("*.png"))]
    with Image.open(path) as file:
        images = []
        for i in range(getattr(file, "n_frames", 1)):
            file.seek(i)
            images.append(np.array(file.convert("RGB")).astype(int))
        return images


def test_frames_show_the_pose(film_of, library):
    env = film_of[1]
    qpos = np.array([[0.0], [np.pi]])
    scene = frames.check(env)
    up, down = frames.draw(scene, {"qpos": qpos}, Picture(64, 96), library, fast=True)
    # The pole is lighter than the sky behind it: above the hinge in the first frame only.
    above = [frame[20:40, 30:34].astype(int).mean() for frame in (up, down)]
    assert above[0] > above[1] + 15


def test_captions_can_be_read():
    from PIL import Image

    white = np.full((480, 640, 3), 255, np.uint8)
    out = overlay.write_caption(white, overlay.Caption("task   episode 1", "step 5   return 7.0"))
    strip = np.asarray(Image.fromarray(out[:46]).convert("L"))
    assert (strip > 220).sum() > 300 and np.median(strip) < 130  # white on grey
    assert (out[60:] == 255).all() and (white == 255).all()


def test_long_captions_fit():
    frame = np.zeros((64, 96, 3), np.uint8)
    out = overlay.write_caption(frame, overlay.Caption("a" * 200, "step 5"))
    assert out[:, -2:].max() < 100  # the last columns stay free


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 0.0), (0.0, 2000.0), (0.0, 1e-5)])
def test_axes_have_a_few_round_numbers(low, high):
    ticks = overlay._ticks(low, high)
    assert 2 <= len(ticks) <= 6 and low <= min(ticks) and max(ticks) <= high * (1 + 1e-9)


def test_real_rewards_of_the_panel(film_of):
    recording = film_of[0][0]
    panel = overlay.Panel(recording, 64)
    horizon = CONFIG.agent.mppi.horizon
    expected = [recording.reward[t : t + horizon].sum() for t in range(DECISIONS)]
    np.testing.assert_allclose(panel.real[:, -1], expected, rtol=1e-5, atol=1e-5)
    assert panel.frame(0).shape == panel.frame(DECISIONS).shape == (64, panel.size[0], 3)


def test_the_chosen_plan_is_drawn_over_all_other_lines(film_of, monkeypatch):
    panel, drawn = overlay.Panel(film_of[0][0], 64), []
    line = overlay.Axes.line

    def spy(axes, draw, values, colour, width):
        drawn.append((axes, colour, width))
        line(axes, draw, values, colour, width)

    monkeypatch.setattr(overlay.Axes, "line", spy)
    panel.frame(1)
    for axes in (panel.above, panel.below):
        *others, (_, colour, width) = [entry for entry in drawn if entry[0] == axes]
        assert colour == overlay.CHOSEN
        assert all(w > width for _, c, w in others if c == overlay.REAL)


def test_the_viewer_is_one_page_with_all_poses(film_of, tmp_path):
    path = tmp_path / "film.html"
    write(film_of, path, "", TAKE._replace(imagine=False))
    page = path.read_text()
    assert "http" not in page.replace("http-equiv", "") and "src=" not in page
    data = json.loads(re.search(r"const data = (\{.*\});\n", page)[1])
    states = 2 * (DECISIONS + 1)
    assert len(data["captions"]) == states and data["seconds"] == pytest.approx(1.9)
    poses = np.frombuffer(base64.b64decode(data["poses"]), "<f4")
    poses = poses.reshape(states, len(data["geoms"]), 7)
    model = film_of[1].scene.model
    mass = [g["kind"] for g in data["geoms"]].index("sphere")
    qpos = film_of[2]["qpos"][:, 0]
    # The mass moves on a circle about the hinge; its height is a cosine.
    height = poses[:, mass, 2] - model.body("pole").pos[2]
    length = model.geom("mass").pos[2]
    np.testing.assert_allclose(height, length * np.cos(qpos), atol=1e-5)


TERRAIN = """<mujoco><asset><hfield name="h" nrow="2" ncol="3" size="3 1 2 .1"
 elevation="0 0 0 0 0 1"/></asset><worldbody><geom type="hfield" hfield="h" pos="0 0 1"/>
<body pos="0 0 3"><freejoint/><geom size=".1"/></body></worldbody></mujoco>"""


def test_the_viewer_draws_terrain_and_tasks_may_be_called_data(tmp_path):
    model = mujoco.MjModel.from_xml_string(TERRAIN)
    scene = Scene(model, lambda state: {}, 0.1)
    poses = {"qpos": np.tile(model.qpos0, (3, 1))}
    rest = [np.zeros((n, 1)) for n in (3, 2)]
    recording = episodes.Recording(
        poses, *rest, reward=np.zeros(2), terminated=False, valid=True, seconds=0.1,
        predictions=None,
    )  # fmt: skip
    viewer.write(tmp_path / "x.html", scene, [recording], "DATA TITLE </script>", None)
    page = (tmp_path / "x.html").read_text()
    assert "<title>DATA TITLE &lt;/script&gt;</title>" in page
    data = json.loads(re.search(r"const data = (\{.*\});\n", page)[1])
    terrain, ball = data["geoms"]
    assert (terrain["kind"], terrain["mesh"], ball["kind"]) == ("mesh", 0, "sphere")
    corners = np.frombuffer(base64.b64decode(data["meshes"][0]), "<f4").reshape(-1, 3, 3)
    # Two cells of two triangles. The last row of XML is the one with the least y: MuJoCo turns it.
    assert corners.shape == (4, 3, 3)
    top = corners.reshape(-1, 3)[corners[..., 2].argmax()]
    np.testing.assert_allclose(top, [3.0, -1.0, 2.0])
    np.testing.assert_allclose(corners.reshape(-1, 3).min(axis=0), [-3.0, -1.0, 0.0])


def test_a_line_has_gaps_where_it_is_not_finite():
    from PIL import Image, ImageDraw

    image = Image.new("L", (41, 11))
    axes = overlay.Axes((0, 0, 40, 10), 4, 0.0, 1.0)
    axes.line(ImageDraw.Draw(image), [0.5, 0.5, np.nan, 0.5, np.inf], 255, 1)
    row = np.asarray(image)[5]
    assert row[:10].all() and not row[12:].any()


# what tasks expose


@pytest.mark.parametrize(
    ("name", "kind", "origin", "frame", "axes"),
    [
        ("reacher-hard", "geom", ("geom", "finger"), None, slice(2, 4)),
        ("finger-turn_easy", "site", ("body", "spinner"), None, slice(9, 11)),
        ("fish-swim", "geom", ("geom", "mouth"), ("geom", "mouth"), slice(8, 11)),
        ("swimmer-swimmer6", "geom", ("geom", "nose"), ("body", "head"), slice(5, 7)),
    ],
)
def test_targets_are_drawn_where_the_agent_sees_them(name, kind, origin, frame, axes):
    env = envs.make(name, 1, "host")
    scene = env.scene

    def begin(keys):
        state, step = env.reset(keys)
        return frames.poses(scene, state.task), step.obs

    pose, obs = jax.tree.map(
        lambda x: np.asarray(x[0]), jax.jit(begin)(jax.random.split(jax.random.key(1), 1))
    )
    data = mujoco.MjData(scene.model)
    for field, value in pose.items():
        getattr(data if hasattr(data, field) else scene.model, field)[:] = value
    mujoco.mj_forward(scene.model, data)

    def part(kind, name):
        return getattr(data, kind)(name)

    seen = part(kind, "target").xpos - part(*origin).xpos
    if frame is not None:
        seen = seen @ part(*frame).xmat.reshape(3, 3)
    if name.startswith("finger"):  # a plane through x and z
        seen = seen[::2]
    np.testing.assert_allclose(obs[axes], seen[: axes.stop - axes.start], atol=1e-5)
    assert np.linalg.norm(obs[axes]) > 0.01


def own_task(observe=lambda x: x[:3], **scene):
    """A user's own MuJoCo task: a ball that falls."""
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><light pos='0 0 3'/><geom type='plane' size='2 2 .1'/>"
        "<body pos='0 0 1'><freejoint/><geom size='.2'/></body></worldbody></mujoco>"
    )
    start = jnp.asarray(model.qpos0, jnp.float32)
    shown = {"model": model, "pose": lambda x: {"qpos": x}, "timestep": 0.1} | scene
    return envs.make_env(
        envs.Task(
            name="ball",
            reset=lambda key: start,
            step=lambda x, action: x.at[2].add(-0.05),
            observe=observe,
            reward=lambda x: x[2],
            terminated=lambda x: jnp.zeros((), bool),
            observation_size=3,
            action_size=1,
            episode_steps=4,
            scene=Scene(**shown),
        )
    )


def test_own_tasks_are_drawn(library):
    scene = frames.check(own_task())
    qpos = np.tile(scene.model.qpos0, (2, 1))
    qpos[1, 2] = 0.2
    high, low = frames.draw(scene, {"qpos": qpos}, Picture(64, 64, -1), library, fast=False)
    assert (high != low).any()


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        ({"model": "ball.xml"}, "task 'ball': scene.model is str; must be a mujoco.MjModel"),
        ({"timestep": 0.0}, "task 'ball': scene.timestep = 0.0; must be > 0 s"),
        ({"pose": lambda x: x}, "scene.pose returns no 'qpos'"),
        ({"pose": lambda x: {"qvel": x[:6]}}, "scene.pose returns no 'qpos'"),
        ({"pose": lambda x: {"qpos": x[:3]}}, "scene.pose returns qpos [3]; the model's is [7]"),
        ({"pose": lambda x: {"qpos": x, "colour": x}}, "returns 'colour'; must be an array of"),
        ({"camera": "side"}, "camera = 'side': ball has no camera; -1 is a free one"),
    ],
)
def test_scenes_that_cannot_be_drawn(scene, message):
    with pytest.raises(ValueError) as error:
        frames.check(own_task(**scene))
    assert message in str(error.value) and "\n" not in str(error.value)


# the command line


def test_the_command_line(run, library, tmp_path, capsys):
    out = tmp_path / "film.png"
    flags = ["--actor=policy", "--train-seed=4", "--size=96x64", "--camera=lookat"]
    assert render.main([str(run[0]), f"--out={out}", *flags]) == 0
    shown = capsys.readouterr()
    assert "pendulum-swingup after 10 decisions (950 frames) per seed: seed 4, policy" in shown.out
    assert f"episode 1: return 0.0 in {DECISIONS} decisions\nwritten: {out}" in shown.out
    assert "compiling and playing\ndrawing frame 1 of 8" in shown.err
    assert decoded(out, tmp_path)[0].shape == (64, 8 * 96, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out=film.avi"], "--out = 'film.avi': the suffix must be one of .mp4, .gif, .png, "),
        (["--out=/nowhere/x.mp4"], "--out = '/nowhere/x.mp4': /nowhere is no folder"),
        (["--out=x.npz", "--episodes=0"], "--episodes = 0: must be >= 1"),
        (["--out=x.npz", "--seed=-1"], "--seed = -1: must be >= 0"),
        (["--out=x.npz", "--checkpoint=99"], "holds no checkpoint 99; it has [10]"),
        (["--out=x.npz", "--actor=policy", "--imagine"], "'policy' makes no plans; must be 'plan"),
        (["--out=x.npz", "--camera=-1"], "camera = -1: .npz holds states and no picture; leave"),
        (["--out=x.html", "--imagine"], "imagine: .html shows no predictions; .mp4, .gif, .png"),
        (["--out=x.png", "--size=big"], "--size = big: must be WIDTHxHEIGHT in pixels"),
        (["--out=x.png", "--size=641x480"], "size = 641x480: sides must be even, 64 to 4096"),
        (["--out=x.npz", "--train-seed=7"], "--train-seed = 7: this run has the seeds 3 to 4"),
        (["--out=x.npz", "--backend=warm"], "pendulum-swingup has the backend mjx or host or"),
        (["--out=x.png", "--camera=back"], "camera = 'back': pendulum-swingup has fixed, lookat"),
    ],
)
def test_wrong_arguments_are_one_line(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert render.main([str(run[0]), *arguments]) == 2
    error = capsys.readouterr().err.removeprefix(f"reading {run[0]}\n")
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_tasks_without_a_picture(tmp_path, capsys):
    config = config_lib.replace(CONFIG, {"env.task": "probe/truncated", "env.backend": "mjx"})
    folder, _ = saved(tmp_path, config)
    assert render.main([str(folder), f"--out={tmp_path / 'x.html'}"]) == 2
    error = capsys.readouterr().err
    assert "task 'probe/truncated' has no picture; give its Task a scene=Scene(" in error
    out = tmp_path / "x.npz"
    assert render.main([str(folder), f"--out={out}", "--actor=policy"]) == 0
    assert "qpos" not in np.load(out) and np.isnan(np.load(out)["time"]).all()


def test_a_task_of_ones_own_is_unknown_to_the_command_line(tmp_path, capsys):
    folder, _ = saved(tmp_path, CONFIG, "reach")
    assert render.main([str(folder), f"--out={tmp_path / 'x.npz'}"]) == 2
    error = capsys.readouterr().err
    assert "env.task = 'reach'" in error and "--task=MODULE:ATTRIBUTE" in error


# what is missing


def test_no_gl_is_one_line_with_the_package(run, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "PROGRAM", (sys.executable, "-c", "raise ImportError('broken')"))
    names = {"egl": {"libNone.so.1": "libegl1"}, "osmesa": {}}
    monkeypatch.setattr(gl, "FILES", names)
    out = tmp_path / "film.mp4"
    monkeypatch.setattr(episodes, "record", pytest.fail)  # nothing is compiled
    assert render.main([str(run[0]), f"--out={out}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "error: no GL library draws (egl: libNone.so.1 not found; osmesa: ImportError: broken);"
        " `apt-get install libegl1 libgl1-mesa-dri` installs EGL; .html and .npz need none"
    )
    assert not out.exists()


def test_egl_comes_first_and_the_users_choice_alone(monkeypatch):
    tried = []
    monkeypatch.setattr(gl, "attempt", lambda name: tried.append(name) or "" * (name != "egl"))
    assert gl.choose() == "egl" and tried == ["egl"]
    monkeypatch.setattr(gl, "attempt", lambda name: "" if name == "osmesa" else "no")
    assert gl.choose() == "osmesa"
    assert gl.choose("Disable") == "osmesa"
    with pytest.raises(RuntimeError, match="MUJOCO_GL=glfw: no; unset it to try egl and osmesa"):
        gl.choose("GLFW")


def test_the_reason_of_a_library_is_its_exception():
    assert re.search("^(RuntimeError|ImportError): .*nonsense", gl.attempt("nonsense"))


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_a_crash_while_drawing_leaves_no_file(film_of, tmp_path, monkeypatch, suffix):
    code = "import sys; sys.stdout.buffer.write(b'x' * 20_000); sys.exit('ValueError: broken')"
    monkeypatch.setattr(gl, "PROGRAM", (sys.executable, "-c", code))
    with pytest.raises(RuntimeError, match=r"^drawing frame 1 failed: ValueError: broken$"):
        write(film_of, tmp_path / f"film{suffix}", "egl")
    assert not list(tmp_path.iterdir())


def test_a_stop_while_drawing_leaves_no_file(film_of, library, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    recordings, env, _ = film_of

    def stop(text):
        if text.startswith("drawing frame 3 of"):
            assert list(tmp_path.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        film.write(tmp_path / "film.mp4", recordings, env, TAKE, library, stop)
    assert not list(tmp_path.iterdir())


def test_a_stopped_command_says_so(run, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt(15)

    monkeypatch.setattr(episodes, "record", stop)
    assert render.main([str(run[0]), f"--out={tmp_path / 'x.npz'}"]) == 128 + 15
    assert capsys.readouterr().err.endswith("stopped; nothing was written\n")


def test_no_encoder(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(formats, "encoder", lambda: None)
    assert render.main([str(run[0]), f"--out={tmp_path / 'film.mp4'}"]) == 2
    error = capsys.readouterr().err
    assert 'no ffmpeg; pip install "pomcp_jax[render]" installs one, .gif needs none' in error


def test_an_encoder_that_fails(film_of, library, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "encoder", lambda: "/bin/false")
    with pytest.raises(RuntimeError, match="^ffmpeg failed"):
        write(film_of, tmp_path / "film.mp4", library)
    assert not list(tmp_path.iterdir())


def test_films_run_in_real_time(film_of):
    recording = film_of[0][0]
    strides = {
        seconds: [formats.stride(s, recording._replace(seconds=seconds)) for s in (".mp4", ".gif")]
        for seconds in (0.005, 0.02, 1 / 60, 0.04, 1.9)
    }
    assert strides == {0.005: [4, 8], 0.02: [1, 2], 1 / 60: [1, 3], 0.04: [1, 1], 1.9: [1, 1]}


@pytest.mark.parametrize(
    ("width", "count", "shape"),
    [
        (640, 6, (2, 3840)),
        (640, 8, (4, 2560)),
        (928, 8, (4, 3712)),
        (1440, 8, (8, 2880)),
        (5000, 2, (4, 5000)),
    ],
)
def test_wide_strips_take_several_lines(width, count, shape, tmp_path):
    """8 frames of 928 pixels would be 7,424 across; their order is that of reading."""
    from PIL import Image

    frames = [np.full((2, width, 3), 10 * i, np.uint8) for i in range(count)]
    path = tmp_path / "strip.png"
    formats.write_png(path, iter(frames), [(0, i) for i in range(count)])
    image = np.asarray(Image.open(path))
    assert image.shape[:2] == shape
    shown = image[::2, ::width, 0].ravel()
    assert list(shown[:count]) == [10 * i for i in range(count)]
