"""The page at /: try the model in a browser. One file, which calls the server that it came from."""

from typing import Any

from t5x_lite import page

_STYLE = """
form { display: grid; gap: .8rem }
label { display: grid; gap: .2rem; font-size: .85rem; color: var(--soft) }
textarea, input, select, button { font: inherit; color: var(--ink); background: var(--paper);
  border: 1px solid var(--line); border-radius: .4rem; padding: .45rem .6rem; width: 100% }
textarea { min-height: 8rem; resize: vertical }
textarea:focus, input:focus, select:focus { outline: 2px solid var(--accent); outline-offset: -1px }
.settings { display: grid; grid-template-columns: repeat(auto-fit, minmax(7rem, 1fr)); gap: .6rem }
.buttons { display: flex; gap: .6rem } .buttons button { width: auto; padding: .45rem 1.2rem }
button { cursor: pointer } button:disabled { opacity: .5; cursor: default }
button.main { background: var(--accent); border-color: var(--accent); color: var(--paper) }
.answer { background: var(--wash); border-radius: .5rem; padding: .7rem .9rem; margin: .8rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; min-height: 3rem }
.said { color: var(--soft) } .said b { color: var(--ink) }
"""
_SCRIPT = """
const data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
let talk = [], running = null;

function headers() {
  const found = {'content-type': 'application/json'};
  if ($('key') && $('key').value) found.authorization = 'Bearer ' + $('key').value;
  return found;
}
function say(text, bad) {
  $('status').textContent = text; $('status').className = bad ? 'bad' : 'soft';
}
async function post(path, body, signal) {
  const options = {method: 'POST', headers: headers(), body: JSON.stringify(body), signal};
  const response = await fetch(path, options);
  if (!response.ok) {
    const found = await response.json().catch(() => ({}));
    throw new Error(found.error ? found.error.message : 'status ' + response.status);
  }
  return response;
}
function line(who, text) {
  const p = document.createElement('div'), b = document.createElement('b');
  b.textContent = who + ': '; p.className = 'said'; p.append(b, text); $('talk').append(p);
}
async function write(event) {
  event.preventDefault();
  const chat = $('kind').value === 'chat', text = $('prompt').value;
  const body = {model: data.model, stream: true, stream_options: {include_usage: true}};
  for (const name of ['temperature', 'top_p', 'top_k', 'max_tokens', 'seed'])
    if ($(name).value !== '') body[name] = Number($(name).value);
  if ($('stop').value) body.stop = [$('stop').value];
  if (chat) body.messages = [...talk, {role: 'user', content: text}]; else body.prompt = text;
  running = new AbortController();
  $('go').disabled = true; $('halt').disabled = false; $('answer').textContent = ''; say('...');
  const began = performance.now();
  let answer = '', usage = null, first = null;
  try {
    const path = chat ? '/v1/chat/completions' : '/v1/completions';
    const response = await post(path, body, running.signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ''; ;) {
      const {value, done} = await reader.read();
      if (done) break;
      const events = (rest + value).split('\\n\\n');
      rest = events.pop();
      for (const found of events) {
        if (!found.startsWith('data: {')) continue;
        const piece = JSON.parse(found.slice(6));
        if (piece.error) throw new Error(piece.error.message);
        if (piece.usage) usage = piece.usage;
        for (const choice of piece.choices) {
          answer += chat ? choice.delta.content || '' : choice.text;
          if (first === null && answer) first = performance.now() - began;
        }
        $('answer').textContent = answer;
      }
    }
    const seconds = (performance.now() - began) / 1000;
    if (usage) say(`${usage.completion_tokens} tokens in ${seconds.toFixed(2)} s` +
      (first === null ? '' : `, the first after ${(first / 1000).toFixed(2)} s`));
    if (chat && answer.trim()) {
      talk.push({role: 'user', content: text}, {role: 'assistant', content: answer});
      line('you', text); line('model', answer);
      $('prompt').value = ''; $('answer').textContent = '';
    }
  } catch (error) {
    say(error.name === 'AbortError' ? 'stopped' : error.message, error.name !== 'AbortError');
  }
  $('go').disabled = false; $('halt').disabled = true;
}
async function compare(event) {
  event.preventDefault();
  $('go').disabled = true; say('...');
  try {
    const input = [$('first').value, $('second').value];
    const response = await post('/v1/embeddings', {model: data.model, input});
    const [a, b] = (await response.json()).data.map(x => x.embedding);
    $('answer').textContent = a.reduce((sum, x, i) => sum + x * b[i], 0).toFixed(4);
    say(`cosine similarity, of ${a.length} numbers each`);
  } catch (error) { say(error.message, true); }
  $('go').disabled = false;
}
$('form').addEventListener('submit', data.embeds ? compare : write);
if (!data.embeds) {
  $('halt').addEventListener('click', () => running && running.abort());
  $('kind').addEventListener('change', () => { talk = []; $('talk').textContent = ''; });
  $('prompt').addEventListener('keydown', e => {
    const wanted = e.key === 'Enter' && (e.ctrlKey || e.metaKey);
    if (wanted && !$('go').disabled) $('form').requestSubmit();
  });
}
"""


def render(name: str, *, embeds: bool, has_encoder: bool, max_tokens: int, key: bool) -> str:
    """HTML. ``embeds``: the model makes vectors, not texts; ``key``: the server wants one."""
    fields = _pair() if embeds else _prompt(has_encoder, max_tokens)
    if key:
        fields += "<label>key <input id='key' type='password' autocomplete='off'></label>"
    stop = "" if embeds else "<button type='button' id='halt' disabled>Stop</button>"
    body = (
        "<div id='talk'></div>"
        f"<form id='form'>{fields}<div class='buttons'>"
        f"<button class='main' id='go'>{'Compare' if embeds else 'Write'}</button>{stop}</div>"
        "</form><div class='answer' id='answer' aria-live='polite'></div>"
        "<p id='status' class='soft' role='status'></p>"
        f"<p><small>The same from a program: POST {_route(embeds)}, as with OpenAI.</small></p>"
    )
    data: dict[str, Any] = {"model": name, "embeds": embeds}
    return page.document(name, body, style=_STYLE, script=_SCRIPT, data=data, calls=True)


def _route(embeds: bool) -> str:
    return "/v1/embeddings" if embeds else "/v1/completions or /v1/chat/completions"


def _pair() -> str:
    return (
        "<label>a text <textarea id='first' required></textarea></label>"
        "<label>another <textarea id='second' required></textarea></label>"
    )


def _prompt(has_encoder: bool, max_tokens: int) -> str:
    hint = "an input, such as: import &lt;extra_id_0&gt; as np" if has_encoder else "go on from ..."
    numbers = [
        ("temperature", "0.7", "min=0 max=2 step=0.05"),
        ("top_p", "1", "min=0.01 max=1 step=0.01"),
        ("top_k", "0", "min=0 step=1"),
        ("max_tokens", str(max_tokens), f"min=1 max={max_tokens} step=1"),
        ("seed", "", "min=0 step=1 placeholder=random"),
    ]
    inputs = "".join(
        f"<label>{name} <input id='{name}' type='number' value='{value}' {more}></label>"
        for name, value, more in numbers
    )
    return (
        f"<label>text <textarea id='prompt' required placeholder='{hint}'></textarea></label>"
        "<div class='settings'><label>as <select id='kind'><option value='text'>a text</option>"
        f"<option value='chat'>a chat</option></select></label>{inputs}"
        "<label>stop <input id='stop'></label></div>"
    )
