// Prints the embeddings of texts from each client, as JSON. Arguments: base URL, model name, texts.
import { OpenAIEmbeddings } from "@langchain/openai";
import OpenAI from "openai";

const [baseURL, model, ...texts] = process.argv.slice(2);
const apiKey = "unused";
texts.push("가🎉".slice(0, 2)); // half of the emoji, which an argument of a command cannot have

const openai = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const [asBase64, asFloat] = await Promise.all(
  [{}, { encoding_format: "float" }].map((format) => openai.embeddings.create({ model, input: texts, ...format })),
);
// By default, LangChain replaces line breaks with spaces.
const langchain = new OpenAIEmbeddings({ model, apiKey, configuration: { baseURL }, stripNewLines: false });
console.log(
  JSON.stringify({
    openai: asBase64.data.map((item) => item.embedding),
    openaiAsFloat: asFloat.data.map((item) => item.embedding),
    langchain: await langchain.embedDocuments(texts),
    langchainQueries: await Promise.all(texts.map((text) => langchain.embedQuery(text))),
  }),
);
