// Vercel's AI SDK sends each conversation; prints what came as JSON. ADDRESS MODEL CONVERSATIONS as arguments.
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, jsonSchema, Output, streamText, tool } from 'ai';

const [address, name, text] = process.argv.slice(2);
const given = JSON.parse(text);
const provider = createOpenAICompatible({
  name: 'tuneloop', baseURL: `${address}/v1`, apiKey: 'none', supportsStructuredOutputs: true, includeUsage: true,
});
const model = provider(name);
const settings = { model, maxRetries: 0, maxOutputTokens: given.tokens };
const split = (messages) => ({
  system: messages.filter((turn) => turn.role === 'system').map((turn) => turn.content).join('\n') || undefined,
  messages: messages.filter((turn) => turn.role !== 'system'),
});
const found = {};
for (const [shape, messages] of Object.entries(given.conversations)) {
  found[shape] = (await generateText({ ...settings, ...split(messages) })).text;
}
const plain = given.conversations.plain;
found.streamed = '';
for await (const piece of streamText({ ...settings, messages: plain }).textStream) found.streamed += piece;
const { name: called, parameters } = given.tool.function;
const tools = { [called]: tool({ description: 'x', inputSchema: jsonSchema(parameters), execute: async () => 'in Utrecht' }) };
const calls = await generateText({ ...settings, messages: plain, tools, toolChoice: 'required', maxOutputTokens: 200 });
found.call = [calls.toolCalls[0].toolName, calls.toolCalls[0].input];
const messages = [...plain, ...calls.response.messages];
found['after the call'] = Boolean((await generateText({ ...settings, messages, tools })).text);
const output = Output.object({ schema: jsonSchema(given.schema), name: 'kind' });
const formed = await generateText({ ...settings, messages: plain, output, maxOutputTokens: 200 });
found.form = formed.output;
const responses = createOpenAI({ baseURL: `${address}/v1`, apiKey: 'none' });
found.responses = (await generateText({ ...settings, model: responses(name), messages: plain })).text;
const asked = { ...settings, model: responses(name), tools };
const first = await generateText({ ...asked, messages: plain, toolChoice: 'required', maxOutputTokens: 200 });
found['responses with tools'] = [first.toolCalls[0].toolName, first.toolCalls[0].input];
const behind = [...plain, ...first.response.messages]; // the call is a reference to its item
found['responses after the call'] = Boolean((await generateText({ ...asked, messages: behind })).text);
let streamed = '';
for await (const part of streamText({ ...asked, messages: plain, toolChoice: 'required', maxOutputTokens: 200 }).fullStream) {
  if (part.type === 'tool-call') streamed = part.toolName;
}
found['responses streamed call'] = streamed;
console.log(JSON.stringify(found));
